"""Runs the frozen part of a model once for each example, and trains and evaluates what follows it.

The first time that an example is met, the frozen part computes its activations, without gradients, and
they are kept. The rest of the model then runs from what is kept, that time and every time after: there
is no pass of its own to fill the store, and every pass over the data goes the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sft_engine import ranks
from sft_engine.errors import RecipeError
from sft_engine.records import remove
from sft_engine.replay import decision, identity, together
from sft_engine.replay.check import kept_rows, replayed, require_same, verify, verify_again
from sft_engine.replay.decision import Amounts, Decision, Figures
from sft_engine.replay.keeping import Keeping, Source
from sft_engine.replay.liveness import find_cut
from sft_engine.replay.probes import choose, probes
from sft_engine.replay.shared import SharedTrunk, current
from sft_engine.replay.stubs import installed
from sft_engine.replay.timing import Stopwatch, least
from sft_engine.replay.together import JointHeads, Part
from sft_engine.replay.trace import Probe, Refused, pure, reason_of, same_draws, trace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sft_engine.devices import Precision
    from sft_engine.flow import Batch, Run, View
    from sft_engine.replay.cut import Cut
    from sft_engine.replay.stubs import Stub

    Stubs = list[tuple[nn.Module, Stub]]

MEASURED = 3
"""Micro-batches after which it is decided whether to go on."""


@dataclass
class Replay:
    """Replays the frozen part of a run's model.

    Args:
        run: The run; its batches come through `serving`.
        precision: Autocast.
        fingerprints: Content hash of each split.
    """

    run: Run
    precision: Precision
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    keeping: Keeping | None = None
    shared: SharedTrunk | None = field(default_factory=current)
    joint: JointHeads | None = field(default_factory=together.current)
    _source: Source = field(init=False)
    _stale: bool = True
    _trial: list[Figures] | None = None  # of micro-batches in which the frozen part ran
    _trial_batches: int = 0
    _trial_epoch: int = 0
    _watched: identity.Watched | None = None
    _checked: bool | None = None  # in evaluation mode
    _admitted: dict[str, bool] = field(default_factory=dict)  # streams by the name of their split
    _decisions: dict[str, Decision] = field(default_factory=dict)
    _epochs: dict[str, float] = field(default_factory=dict)  # that were left when it was planned
    _restored: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._source = Source(self.run)

    # --- what the loop and evaluation call -------------------------------------------------------

    @property
    def asleep(self) -> bool:
        """Whether every batch runs in full and is real, and nothing is to be planned."""
        return self.keeping is None and not self._stale and not self._source.stood_in

    def follow(self) -> None:
        """Plan anew at the next batch, because what trains has changed, or what it is trained on."""
        self._drop()
        self._stale = True

    def serving(self, batch: Batch, view: View | None = None) -> AbstractContextManager[None]:
        """Return the context in which a batch's forward and backward passes run.

        Args:
            batch: On the device. If it is not served, its inputs are made real where they are not.
            view: The view that is being evaluated; None in training.
        """
        if view is None:
            self._prepare(batch)
        if self.keeping is None or not self._is_served(self.keeping, batch, view):
            self.make_real(batch)
            return nullcontext()
        clock = Stopwatch(self.run.device, on=view is None and self._trial is not None)
        try:
            rows, valid = self.keeping.activations(batch, clock, training=view is None)
        except (Refused, LookupError) as error:
            self._exclude(batch.split, str(error))
            self.make_real(batch)
            return nullcontext()
        part = Part(self.run, self.precision, self.keeping.cut, batch, rows, valid)
        if view is None and self.joint is not None and self._may_join():
            return self.joint.serving(part)
        return self._served(part.stubs(), clock, batch)

    def _may_join(self) -> bool:
        """Say whether this run's own model is what is called, and nothing is being measured."""
        return self._trial is None and self.run.wrapped is self.run.model

    def make_real(self, batch: Batch) -> None:
        """Fetch the inputs that a batch has only stand-ins of."""
        self._source.make_real(batch)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs: decisions, and who was computed with whom (collective)."""
        if self._trial is not None:
            # A resumed run could measure otherwise, and go another way than this one.
            self._judge(self._trial)
        keeping = self.keeping
        if keeping is not None:
            keeping.commit()
        own = {} if keeping is None else keeping.groups()
        return {
            "decisions": {key: [each.on, each.line] for key, each in self._decisions.items()},
            "epochs": dict(self._epochs),
            "fingerprint": "" if keeping is None else keeping.fingerprint,
            "groups": ranks.everyones(self.run.accelerator, own),
            "admitted": ranks.everyones(self.run.accelerator, self._admitted),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._decisions = {key: Decision(*each) for key, each in state["decisions"].items()}
        self._epochs = dict(state["epochs"])
        self._restored = state

    def close(self, *, finished: bool) -> None:
        """Let go of everything; files stay only for a run that can be resumed."""
        if finished:
            self._drop()
            if self.run.is_main:  # files, too, of processes that were there before a resume
                remove([self.run.folder / "replay"])
        self.keeping = None

    # --- planning --------------------------------------------------------------------------------

    def _prepare(self, batch: Batch) -> None:
        """Plan if that is due; decide if enough was measured; look for changes of weights."""
        if self._watched is not None and not self._watched.unchanged:
            self._say("replay begins anew: frozen weights have changed")
            self.follow()
        if self._stale:
            self._stale = False
            restored, self._restored = self._restored, {}
            self._plan(batch, restored)
        elif self._trial is not None and self._trial_ends():
            self._judge(self._trial)
        # All that come, served or not: all ranks must come to decide at the same one.
        self._trial_batches += 1

    def _plan(self, batch: Batch, restored: Mapping[str, Any]) -> None:
        """Find and check the cut, or say why there is none."""
        run = self.run
        if all(p.requires_grad for p in run.model.parameters()):
            return
        known = self._known_decision()
        if known is not None and not known.on:
            return
        found, failure = self._tried(batch)
        # What one rank cannot do, none does.
        failure = next(filter(None, ranks.everyones(run.accelerator, failure)), "")
        if found is None or failure:
            self._refuse(failure)
            return
        self._keep_by(*found, restored)
        self._admitted.setdefault(batch.split, True)
        self._announce(known)

    def _tried(self, batch: Batch) -> tuple[tuple[Cut, Probe] | None, str]:
        """Return a cut that has passed all checks, or why there is none."""
        if reason := self._bar(batch):
            return None, reason
        try:
            return self._attempt(batch.split), ""
        except Exception as error:  # noqa: BLE001  a model may raise anything when it is tried out
            return None, reason_of(error)

    def _bar(self, batch: Batch) -> str:
        bar = identity.bar(self.run, self.run.splits.get(batch.split))
        # Resumed in its last epoch, a run goes on as it was decided in the first.
        key = identity.trainable_key(self.run)
        epochs = self._epochs.setdefault(key, self._epochs_left())
        if not bar and self.run.plan.train.replay == "auto" and epochs <= 1:
            return "no example is seen twice"
        return bar

    def _attempt(self, name: str) -> tuple[Cut, Probe]:
        """Find a cut with examples of a split, and check it.

        Raises:
            Refused: there is none.
        """
        model = self.run.model
        cuts = {} if self.shared is None else self.shared.cuts
        key = identity.structure_key(self.run, self.precision.name)
        with torch.enable_grad(), pure(model):
            first, second, alone = self._probes(name)
            if key in cuts and self._holds(cut := cuts[key].on(model), first):
                return cut, first
            cut, one, other = find_cut(model, first, second)
            identity.refuse_listeners(cut)
            verify(model, cut, [(first, one), (second, other)], (alone, 0))
        cuts[key] = cut.on(None)
        return cut, first

    def _holds(self, cut: Cut, probe: Probe) -> bool:
        """Say whether a cut that another run of the study has found holds for this model, too."""
        try:
            identity.refuse_listeners(cut)
            verify_again(self.run.model, cut, probe)
        except Refused:
            return False
        return True

    def _probes(self, name: str) -> tuple[Probe, Probe, Probe]:
        real = self._source.examples(name)
        exact = None if self.precision.name == "fp32" else self._read_exactly
        return probes(
            choose(real), lambda ids: self._source.fetched(name, ids), self._read, real, exact
        )

    def _read(self, batch: Batch) -> list[Tensor]:
        """Run the model; return all that the task makes of its outputs."""
        with self.precision.autocast():
            return self._read_exactly(batch)

    def _read_exactly(self, batch: Batch) -> list[Tensor]:
        run = self.run
        outputs = run.backbone.forward(run.model, batch.inputs)
        predicted = run.task.predictions(outputs, batch)
        return [run.task.loss(outputs, batch).value, *predicted.values()]

    def _keep_by(self, cut: Cut, probe: Probe, restored: Mapping[str, Any]) -> None:
        run = self.run
        self._watched = identity.Watched(run, cut)
        weights, precision = self._watched.digest, self.precision.name
        fingerprint = identity.fingerprint(run, cut, probe, weights, precision)
        groups = restored.get("groups", [])
        # Of other weights, or of another number of processes: they are put together anew.
        same = restored.get("fingerprint") == fingerprint
        usable = same and len(groups) == run.accelerator.num_processes
        rank = run.accelerator.process_index
        own = groups[rank] if usable else {}
        self._admitted = dict(restored["admitted"][rank]) if usable else {}
        self.keeping = Keeping(
            self._source,
            self.precision,
            cut,
            fingerprint,
            self.fingerprints,
            own,
            self.shared,
            identity.shared_key(run, cut, weights, precision),
        )
        self._checked = None

    # --- deciding --------------------------------------------------------------------------------

    def _announce(self, known: Decision | None) -> None:
        if known is None and self.run.plan.train.replay == "auto":
            self._trial, self._trial_batches = [], 0
            self._trial_epoch = self.run.clock.epoch
        elif known is None:
            self._settle(Decision(on=True, line=f"replay is on: {self._described()}"))

    def _refuse(self, reason: str) -> None:
        self._require_leave(reason)
        self._settle(Decision(on=False, line=f"replay is off: {reason}"))

    def _require_leave(self, reason: str) -> None:
        """Stop the run if the recipe insists on what cannot be."""
        if self.run.plan.train.replay is True:
            raise RecipeError(
                f"`train.replay = true` cannot hold at step {self.run.clock.step}: {reason}; set it to "
                '"auto" or false'
            )

    def _trial_ends(self) -> bool:
        # From the second epoch on, what is kept differs by rounding: only what is decided on may do that.
        return self._trial_batches >= MEASURED or self.run.clock.epoch != self._trial_epoch

    def _judge(self, trial: list[Figures]) -> None:
        """Decide by what was measured whether to go on; equally on all ranks."""
        run = self.run
        own = decision.decide(least(trial), self._amounts()) if trial else None
        decided = ranks.from_main(run.accelerator, own)
        if decided is None:  # all that rank 0 has met was there already
            return
        self._trial = None
        if decided.on:
            decided = Decision(on=True, line=f"{decided.line}; {self._described()}")
        if self.shared is not None:
            self.shared.decisions[identity.trainable_key(run)] = decided
        elif run.is_main:
            decision.remember(identity.run_key(run), decided)
        self._settle(decided)
        if not decided.on:
            self._drop()

    def _known_decision(self) -> Decision | None:
        """Return what was decided earlier in this run, or on this machine for the same recipe."""
        run = self.run
        known = self._decisions.get(identity.trainable_key(run))
        if known is not None or run.plan.train.replay is True:
            return known
        if self.shared is not None:
            shared = self.shared.decisions.get(identity.trainable_key(run))
            if shared is not None:
                line = f"{shared.line}; decided in another run of the study"
                self._settle(Decision(on=shared.on, line=line))
            return shared
        found = decision.remembered(identity.run_key(run)) if run.is_main else None
        found = ranks.from_main(run.accelerator, found)
        if found is not None:
            self._settle(Decision(on=found.on, line=f"{found.line}; measured in an earlier run"))
        return found

    def _settle(self, decided: Decision) -> None:
        """Hold on to a decision, on resume too, and say it once."""
        self._decisions[identity.trainable_key(self.run)] = decided
        self._say(decided.line)

    def _amounts(self) -> Amounts:
        assert self.keeping is not None
        stores = [kept.store for key, kept in self.keeping.kept.items() if key[1]]
        store = max(stores, key=len)
        size = store.bytes / max(int(store.present.sum()), 1)
        whole = size * len(store) * self.run.accelerator.num_processes
        share = self.run.plan.train.replay_memory
        place = decision.place_for(whole, self.run.folder, share)
        return Amounts(len(store), self._epochs_left(), size, place)

    def _epochs_left(self) -> float:
        clock = self.run.clock
        return (clock.phase_end - clock.step) / clock.steps_per_epoch

    def _described(self) -> str:
        """Say what is kept, and what ends the frozen part before its time."""
        assert self.keeping is not None
        cut = self.keeping.cut
        names = ", ".join(f"`{leaf.name[0][0]}`" for leaf in cut.kept)
        left = identity.frozen_outside(self.run.model, cut)
        if not left or not cut.obstacle:
            return f"kept of each example: {names}"
        return (
            f"kept of each example: {names}; {left} frozen parameters run every time, because "
            f"{cut.obstacle}"
        )

    # --- serving ---------------------------------------------------------------------------------

    def _is_served(self, keeping: Keeping, batch: Batch, view: View | None) -> bool:
        split = self.run.splits.get(batch.split)
        if split is None or not keeping.cut.fits(batch.inputs):
            return False
        if view is None:
            return not split.transforms and self._admits(keeping.cut, split.name)
        return self._is_served_in(keeping, view, split.name)

    def _admits(self, cut: Cut, name: str) -> bool:
        """Say whether the cut holds for a stream; tried once for those with which it was not found."""
        if name not in self._admitted:
            self._admitted[name] = True
            if reason := self._failure(cut, name):
                self._exclude(name, reason)
        return self._admitted[name]

    def _exclude(self, name: str, reason: str) -> None:
        """Serve a split no more; each rank for itself."""
        self._require_leave(reason)
        self._admitted[name] = False
        self._say(f"replay is off for the examples of `{name}`: {reason}")

    def _failure(self, cut: Cut, name: str) -> str:
        model = self.run.model
        try:
            with torch.enable_grad(), pure(model):
                first, second, alone = self._probes(name)
                verify(
                    model,
                    cut,
                    [(each, trace(model, each)) for each in (first, second)],
                    (alone, 0),
                )
        except Exception as error:  # noqa: BLE001  as above
            return reason_of(error)
        return ""

    def _is_served_in(self, keeping: Keeping, view: View, name: str) -> bool:
        """Say whether a view of a split is served: the plain one of a split that is looked at again."""
        run = self.run
        plain = view.ids is None and not any((view.model, view.transform, view.perturb))
        if self._trial is not None or not plain:
            return False
        if identity.bar_evaluation(run) or self._watched is None:
            return False
        if not self._admitted.get(name, True):
            return False
        last = run.clock.step >= run.clock.total_steps and self.shared is None
        if (name, False) not in keeping.kept and last:
            return False
        if not self._watched.unchanged:
            return False
        if self._checked is None:
            self._checked = self._holds_in_evaluation(keeping.cut)
        return self._checked

    def _holds_in_evaluation(self, cut: Cut) -> bool:
        """Compare a replayed pass in evaluation mode with a full one, bit for bit."""
        model = self.run.model
        try:
            with pure(model), torch.no_grad():
                probe = self._probes(max(self.run.splits, key=lambda n: len(self.run.splits[n])))[0]
                with same_draws():
                    full = probe.run()
                found, _ = replayed(model, cut, probe, kept_rows(cut, probe))
                require_same("a prediction", found, full, exact=self.run.device.type == "cpu")
        except Refused as error:
            self._say(f"replay is off in evaluation: {error}")
            return False
        return True

    @contextmanager
    def _served(self, stubs: Stubs, clock: Stopwatch, batch: Batch) -> Iterator[None]:
        """Answer for the frozen part."""
        with installed(stubs):
            yield
        clock.lap("rest")
        if clock.on and clock.computed and self._trial is not None:
            self._trial.append(clock.figures(len(batch.ids)))

    # --- the end ---------------------------------------------------------------------------------

    def _drop(self) -> None:
        """Forget the cut and what is kept."""
        if self.keeping is not None:
            self.keeping.discard()
        self.keeping = self._watched = self._trial = None

    def _say(self, line: str) -> None:
        self.run.record({"kind": "notice", "step": self.run.clock.step, "message": line})
