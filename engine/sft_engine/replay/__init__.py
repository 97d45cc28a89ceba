"""Frozen-trunk replay: what does not train is computed once for each example.

trace       what a forward pass calls, and which calls give the same every time
shapes      how activations grow with the inputs
cut         what is answered, what is kept, how it becomes rows and activations again
liveness    finds the cut
stubs       answers in place of modules
check       bit for bit, before anything is trusted
store       memory or files
stand_ins   examples without their pictures
decision    whether it pays
identity    what activations depend on; what stands in the way
replay      brings it together for a run
"""
