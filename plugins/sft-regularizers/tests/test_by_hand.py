"""One step of the engine with a component, and the same step written out by hand."""

from __future__ import annotations

import json

import pytest
import torch
from one_step import RATE, gradients_of, logits, use
from torch.nn import functional

from sft_engine import RecipeError
from sft_regularizers.embeddings import example_noise

PARTS = ["train.micro_batch_size=4"]
EXACT = 1e-13


def joined(seen):
    """Return inputs and labels of the whole window, padded to the longest, micro-batches in order."""
    ids = [row for batch in seen.batches for row in batch.inputs["ids"]]
    labels = torch.cat([batch.targets["label"] for batch in seen.batches])
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), labels


def window(seen, passes=1):
    """As `joined`, of the first of several passes over the window."""
    seen.batches = seen.batches[: len(seen.batches) // passes]
    return joined(seen)


def task(model, ids, labels, delta=0.0):
    return functional.cross_entropy(logits(model, ids, delta), labels)


def test_the_spy_sees_the_step(seen):
    plain = seen("", PARTS)
    ids, labels = joined(plain)
    assert len(plain.batches) == 4
    assert plain.step(gradients_of(plain.start, task(plain.start, ids, labels))) < EXACT


@pytest.mark.parametrize(
    ("name", "options"), [("sam", {"rho": 0.3}), ("asam", {"rho": 0.7, "eta": 0.02})]
)
def test_sam_over_a_window_in_parts(seen, name, options):
    run = seen(use(name, **options), PARTS)
    ids, labels = window(run, passes=2)
    model = run.start
    g = gradients_of(model, task(model, ids, labels))
    size = {
        n: torch.ones_like(p) if name == "sam" or p.ndim < 2 else p.detach().abs() + 0.02
        for n, p in model.named_parameters()
    }
    length = sum((size[n] * g[n]).square().sum() for n in g).sqrt()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.add_(options["rho"] * size[n] ** 2 * g[n] / length)
    uphill = gradients_of(model, task(model, ids, labels))
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(before[n])
    assert run.step(uphill) < EXACT


def test_fgm_adds_the_gradient_after_a_step_of_the_embeddings(seen):
    run = seen(use("fgm", epsilon=0.5), PARTS)
    ids, labels = window(run, passes=2)
    clean = gradients_of(run.start, task(run.start, ids, labels))
    weight = run.start.embeddings.weight
    old = weight.detach().clone()
    with torch.no_grad():
        weight += 0.5 * clean["embeddings.weight"] / clean["embeddings.weight"].norm()
    attacked = gradients_of(run.start, task(run.start, ids, labels))
    with torch.no_grad():
        weight.copy_(old)
    assert run.step({n: clean[n] + attacked[n] for n in clean}) < EXACT


def noise(run, batches, name, length, shape):
    """Draw for the whole window, with its own padding."""
    run.run.clock.step = 0
    width = run.start.embeddings.embedding_dim
    drawn = [example_noise(run.run, batch, name, (length, width), shape) for batch in batches]
    return torch.cat(drawn).double()


@pytest.mark.parametrize("radius", [0.0, 0.15])
def test_freelb_is_the_mean_over_its_ascent(seen, radius):
    steps, size, initial = 3, 0.2, 0.4
    options = {"steps": steps, "step_size": size, "initial": initial, "radius": radius}
    run = seen(use("freelb", **options), PARTS)
    ids, labels = joined(run)
    mask = (ids > 0).unsqueeze(-1).double()
    count = mask.sum((1, 2)) * run.start.embeddings.embedding_dim
    draws = noise(run, run.batches, "freelb", ids.shape[1], "uniform")
    delta = draws * mask * (initial / count.sqrt()).view(-1, 1, 1)
    total = []
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        loss = task(run.start, ids, labels, delta)
        (uphill,) = torch.autograd.grad(loss, delta, retain_graph=True)
        total.append(gradients_of(run.start, loss))
        moved = delta + size * uphill / uphill.flatten(1).norm(dim=1).view(-1, 1, 1)
        length = moved.flatten(1).norm(dim=1).view(-1, 1, 1)
        delta = (
            moved if not radius else torch.where(length > radius, moved * radius / length, moved)
        )
    assert run.step({n: sum(each[n] for each in total) / steps for n in total[0]}) < EXACT
    recorded = [r for r in run.records if r["kind"] == "train"][-1]["loss"]
    start = draws * mask * (initial / count.sqrt()).view(-1, 1, 1)
    assert recorded == pytest.approx(task(run.start, ids, labels, start).item(), rel=1e-12)


def test_neftune(seen):
    run = seen(use("neftune", alpha=2.0), PARTS)
    ids, labels = joined(run)
    mask = (ids > 0).unsqueeze(-1).double()
    draws = noise(run, run.batches, "neftune", ids.shape[1], "uniform")
    delta = draws * mask * 2.0 / (mask.sum((1, 2), keepdim=True) * draws.shape[-1]).sqrt()
    assert run.step(gradients_of(run.start, task(run.start, ids, labels, delta))) < EXACT


def both_ways(one, other):
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() - q.exp()).mul(p - q).sum(-1).mean()


@pytest.mark.parametrize(("name", "shape"), [("r3f", "uniform"), ("r3f", "normal")])
def test_r3f(seen, name, shape):
    run = seen(use(name, strength=0.7, epsilon=0.3, noise=shape), PARTS)
    ids, labels = joined(run)
    draws = noise(run, run.batches, "r3f", ids.shape[1], shape)
    model, clean = run.start, logits(run.start, ids)
    # The noisy branch gives the embeddings no gradient.
    frozen = model.embeddings(ids).detach() - model.embeddings(ids)
    noisy = logits(model, ids, frozen + 0.3 * draws)
    loss = functional.cross_entropy(clean, labels) + 0.7 * both_ways(clean, noisy)
    assert run.step(gradients_of(model, loss)) < EXACT


def test_r4f_ends_with_a_head_of_norm_one(seen):
    run = seen(use("r4f"))
    assert torch.linalg.svdvals(run.end["head.weight"])[0] == pytest.approx(1, rel=1e-12)


def test_smart(seen):
    epsilon, sigma, rise, strength = 0.2, 0.05, 0.1, 1.5
    options = {"epsilon": epsilon, "sigma": sigma, "step_size": rise, "strength": strength}
    run = seen(use("smart", **options), PARTS)
    ids, labels = joined(run)
    mask = (ids > 0).unsqueeze(-1).double()
    model, clean = run.start, logits(run.start, ids)
    draws = noise(run, run.batches, "smart", ids.shape[1], "normal")
    delta = ((sigma * draws).clamp(-epsilon, epsilon) * mask).requires_grad_()
    (uphill,) = torch.autograd.grad(both_ways(logits(model, ids, delta), clean.detach()), delta)
    largest = uphill.abs().amax((1, 2), keepdim=True)
    worst = (delta + rise * uphill / largest).clamp(-epsilon, epsilon).detach()
    apart = both_ways(logits(model, ids, worst), clean)
    loss = functional.cross_entropy(clean, labels) + strength * apart
    assert run.step(gradients_of(model, loss)) < 1e-12


def test_the_proximal_part_of_smart_looks_at_the_average(seen):
    options = {"strength": 0.0, "proximity": 2.0, "decay": 0.9}
    run = seen(use("smart", **options), ["train.steps=2"])
    records = [r for r in run.records if r["kind"] == "train"]
    assert records[0]["loss/smart/proximity"] == 0  # the average is where the weights are
    first, start = run.iterates[0], dict(run.start.named_parameters())
    ids = run.batches[1].inputs["ids"]
    outputs = []
    for share in (1.0, 0.1):  # the weights after a step; their average with a decay of 0.9
        mixed = {n: share * first[n] + (1 - share) * start[n].detach() for n in first}
        outputs.append(torch.func.functional_call(run.start, mixed, (ids,)))
    expected = 2.0 * both_ways(*outputs)
    assert records[1]["loss/smart/proximity"] == pytest.approx(expected.item(), rel=1e-9)


def test_r_drop_is_the_authors_formula(seen):
    """Without dropout both passes agree; with it the recorded terms add up to the formula."""
    run = seen(use("r-drop", alpha=3.0))
    ids, labels = joined(run)
    assert run.step(gradients_of(run.start, task(run.start, ids, labels))) < EXACT
    run = seen(use("r-drop", alpha=3.0), ["backbone.dropout=0.4"])
    ids, labels = joined(run)
    model = run.start.train()
    torch.default_generator.manual_seed(noise_seed(run))
    one, other = logits(model, ids), logits(model, ids)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    kl = functional.kl_div(p, q, log_target=True, reduction="batchmean")
    lk = functional.kl_div(q, p, log_target=True, reduction="batchmean")
    ce = 0.5 * (functional.cross_entropy(one, labels) + functional.cross_entropy(other, labels))
    assert run.step(gradients_of(model, ce + 3.0 * (kl + lk) / 2)) < EXACT


def noise_seed(run, micro=0):
    """Return what the loop seeds a micro-batch of the first step with (decision 0002)."""
    from sft_engine import order

    key = order.mix(0, start=order.mix(run.run.seeds.noise))
    return order.mix(micro, 0, start=key) & (2**63 - 1)


def test_mixout_by_hand(seen):
    from sft_engine import order

    run = seen(use("mixout", p=0.5), ["train.steps=2", *PARTS])
    assert run.end.keys() == dict(run.start.named_parameters()).keys()
    first = run.iterates[0]
    run.batches = run.batches[4:]
    ids, labels = joined(run)
    model = run.start.eval()  # as a copy of the model it would mix, too
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(first[n])
    start = {n: before[n] for n in before if n.startswith("blocks") and n.endswith("weight")}
    keep = {
        n: order.generator(run.run.seeds.noise, 1, 1, order.name_key(n)).random(8) >= 0.5
        for n in start
    }
    params = dict(model.named_parameters())
    mixed = {
        n: 2 * (params[n] * torch.from_numpy(k) + start[n] * torch.from_numpy(~k) - 0.5 * start[n])
        for n, k in keep.items()
    }
    loss = functional.cross_entropy(torch.func.functional_call(model, mixed, (ids,)), labels)
    grads = gradients_of(model, loss)
    worst = max((run.end[n] - (first[n] - RATE * grads[n])).abs().max().item() for n in first)
    assert worst < EXACT


@pytest.mark.parametrize("form", ["loss", "decoupled"])
def test_l2_sp(seen, form):
    """The second step: in the first nothing pulls the backbone, which is where it started."""
    run = seen(use("l2-sp", alpha=0.8, beta=0.3, form=form), ["train.steps=2"])
    first, start = run.iterates[0], {n: p.detach() for n, p in run.start.named_parameters()}
    ids, labels = run.batches[1].inputs["ids"], run.batches[1].targets["label"]
    with torch.no_grad():
        for n, p in run.start.named_parameters():
            start[n] = p.clone()
            p.copy_(first[n])
    g = gradients_of(run.start, task(run.start, ids, labels))
    for name, weight in first.items():
        head = name.startswith(("head", "norm"))
        anchor, strength = (0.0, 0.3) if head else (start[name], 0.8)
        if form == "loss":
            expected = weight - RATE * (g[name] + strength * (weight - anchor))
        else:
            moved = weight - RATE * g[name]
            expected = (moved + RATE * strength * anchor) / (1 + RATE * strength)
        assert torch.allclose(run.end[name], expected, atol=1e-13), name


def test_l2_sp_switches_weight_decay_off_where_it_pulls(seen):
    decay = ["optimizer.weight_decay=0.5"]
    off = seen(use("l2-sp", weight_decay="off"), decay)
    none = seen(use("l2-sp"))
    kept = seen(use("l2-sp", weight_decay="keep"), decay)
    assert all(torch.equal(off.end[n], none.end[n]) for n in none.end)
    assert not all(torch.equal(kept.end[n], none.end[n]) for n in none.end)


def test_l2_sp_fisher_estimates_from_single_examples(seen):
    run = seen(use("l2-sp-fisher", alpha=1.0, beta=0.0, examples=4), ["train.steps=2"])
    component = next(a.component for a in run.run.active if a.planned.name == "l2-sp-fisher")
    split = run.run.splits["train"]
    squares: dict[str, torch.Tensor] = {}
    chosen = sorted(range(len(split)), key=lambda i: -split.examples.lengths[i])
    for i in chosen[:: len(split) // 4][:4]:
        ids = torch.tensor([split.examples.ids[i]])
        label = torch.tensor([split.examples.columns["label"][i]])
        for name, grad in gradients_of(run.start, task(run.start, ids, label)).items():
            squares[name] = squares.get(name, 0) + grad.square() / 4
    for name, fisher in component.state_dict()["fisher"].items():
        assert torch.allclose(fisher, squares[name], atol=1e-15), name
    assert not any(name.startswith("head") for name in component.state_dict()["fisher"])


def test_l1_soft_thresholds_after_the_step(seen):
    run = seen(use("l1", strength=1.0))
    ids, labels = joined(run)
    g = gradients_of(run.start, task(run.start, ids, labels))
    for name, p in run.start.named_parameters():
        moved = p.detach() - RATE * g[name]
        if p.ndim > 1:
            moved = torch.where(moved.abs() > RATE, moved - RATE * moved.sign(), 0.0)
            assert (run.end[name] == 0).any()
        assert torch.allclose(run.end[name], moved, atol=1e-15)


def test_confidence_penalty(seen):
    run = seen(use("confidence-penalty", strength=0.4), PARTS)
    ids, labels = joined(run)
    out = logits(run.start, ids)
    entropy = torch.distributions.Categorical(logits=out).entropy().mean()
    loss = functional.cross_entropy(out, labels) - 0.4 * entropy
    assert run.step(gradients_of(run.start, loss)) < EXACT


def test_a_teacher_out_of_a_run(seen):
    taught = seen("", ["train.steps=4", "seed=9"])
    folder = str(taught.outcome.folder)
    run = seen(use("distillation", teacher=folder, alpha=0.3, temperature=4.0), PARTS)
    ids, labels = joined(run)
    out = logits(run.start, ids)
    weights = {n: taught.end[n] for n, _ in run.start.named_parameters()}
    teacher = torch.func.functional_call(run.start, weights, (ids,)).detach()
    kl = functional.kl_div(
        (out / 4).log_softmax(-1), (teacher / 4).softmax(-1), reduction="batchmean"
    )
    loss = 0.7 * functional.cross_entropy(out, labels) + 0.3 * 16 * kl
    assert run.step(gradients_of(run.start, loss)) < EXACT
    with pytest.raises(RecipeError, match=r'`teacher`: found "nowhere": there `.*` is not trained'):
        seen(use("distillation", teacher="nowhere"))


def test_lwf_holds_the_answers_of_the_old_head(seen):
    run = seen(use("lwf", strength=2.0), ["train.steps=2", *PARTS])
    records = [r for r in run.records if r["kind"] == "train"]
    assert records[0]["loss/lwf"] == pytest.approx(0, abs=1e-15)
    first, start = run.iterates[0], dict(run.start.named_parameters())
    run.batches = run.batches[4:]
    ids, _ = joined(run)
    old = {n: start[n] if n.startswith("head") else first[n] for n in first}
    student = torch.func.functional_call(run.start, old, (ids,))
    p, q = (logits(run.start, ids) / 2).softmax(-1), (student / 2).log_softmax(-1)
    kl = functional.kl_div(q, p, reduction="batchmean")
    assert records[1]["loss/lwf"] == pytest.approx(2.0 * 4 * kl.item(), rel=1e-9)


def test_bss_reads_what_goes_into_the_head(seen):
    run = seen(use("bss", strength=0.5, k=2))
    ids, labels = joined(run)
    caught = []
    hook = run.start.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    out = logits(run.start, ids)
    hook.remove()
    values = torch.linalg.eigvalsh(caught[0].T @ caught[0])[:2].sum()
    loss = functional.cross_entropy(out, labels) + 0.5 * values
    assert run.step(gradients_of(run.start, loss)) < 1e-12


@pytest.mark.parametrize(("name", "term"), [("lwf", "loss/lwf"), ("bss", "loss/bss")])
def test_features_below_a_frozen_head_are_heard(seen, name, term):
    """A frozen head is in evaluation mode; the blocks below it train."""
    below = '[freezing]\nuse = "frozen"\nkeep = ["block.*"]\n'
    run = seen(below + use(name), ["train.steps=2", "optimizer.lr=1.0", "train.replay=false"])
    assert torch.equal(run.end["head.weight"], run.start.head.weight)
    records = [r for r in run.records if r["kind"] == "train"]
    assert records[1][term] > 0


def test_child_tuning_d_moves_the_weights_that_matter_and_the_head(seen):
    run = seen(use("child-tuning", mode="D", p=0.2, examples=8))
    ids, labels = joined(run)
    g = gradients_of(run.start, task(run.start, ids, labels))
    component = next(a.component for a in run.run.active if a.planned.name == "child-tuning")
    masks = component.state_dict()["masks"]
    share = sum(m.sum().item() for m in masks.values()) / sum(m.numel() for m in masks.values())
    assert share == pytest.approx(0.2, abs=0.002)
    assert run.step({n: g[n] * masks[n] if n in masks else g[n] for n in g}) < EXACT


def test_child_tuning_f_scales_what_it_keeps(seen):
    run = seen(use("child-tuning", mode="F", p=0.4))
    ids, labels = joined(run)
    g = gradients_of(run.start, task(run.start, ids, labels))
    for name, p in run.start.named_parameters():
        step = (p.detach() - run.end[name]) / RATE
        kept = (step - g[name] / 0.4).abs() < 1e-12
        if name.startswith(("head", "norm")):
            assert torch.allclose(step, g[name], atol=1e-12)
        else:
            assert (kept | (step.abs() < 1e-12)).all(), name


def test_gradient_noise_has_the_variance_it_says(seen):
    run = seen(use("gradient-noise", eta=0.3))
    ids, labels = joined(run)
    g = gradients_of(run.start, task(run.start, ids, labels))
    noise = torch.cat(
        [
            ((p.detach() - run.end[n]) / RATE - g[n]).flatten()
            for n, p in run.start.named_parameters()
        ]
    )
    error = 3 * 0.3**0.5 / (2 * len(noise)) ** 0.5
    assert noise.std().item() == pytest.approx(0.3**0.5, abs=error)


def test_before_training_only_what_is_named_changes(seen):
    plain = dict(seen("").start.named_parameters())
    again = dict(seen(use("re-init", layers=1)).start.named_parameters())
    changed = {n for n in plain if not torch.equal(plain[n], again[n])}
    assert changed == {"blocks.1.0.weight", "blocks.1.0.bias"}
    noisy = dict(seen(use("noisy-tune", strength=0.2)).start.named_parameters())
    for name, p in plain.items():
        moved = (noisy[name] - p).abs().max()
        head = name.startswith(("head", "norm"))
        assert moved == 0 if head else 0 < moved <= 0.1 * p.std() + 1e-15, name
    with pytest.raises(
        RecipeError, match="`layers` of re-init: found 9, TinyNet has 3 layer groups"
    ):
        seen(use("re-init", layers=9))


# --- averages, in runs of several steps -----------------------------------------------------------


def states(run):
    return [{n: p.detach() for n, p in run.start.named_parameters()}, *run.iterates]


def test_ema_of_a_run(seen):
    run = seen(use("ema", decay=0.8, warmup=False), ["train.steps=5"])
    for name in run.end:
        average = run.start.state_dict()[name].clone()
        for weights in run.iterates:
            average = 0.8 * average + 0.2 * weights[name]
        assert torch.allclose(run.end[name], average, atol=1e-14)


def test_swa_of_a_run(seen):
    options = {"start": 0.5, "every_steps": 2, "lr": 0.05}
    run = seen(use("swa", **options), ["train.steps=8"])
    members = [run.iterates[5], run.iterates[7]]  # after steps 6 and 8 of 8
    for name in run.end:
        assert torch.allclose(run.end[name], (members[0][name] + members[1][name]) / 2)
    rates = [r["lr"] for r in run.records if r["kind"] == "train"]
    assert rates == [0.1] * 4 + [0.05] * 4


def test_lawa_of_a_run(seen):
    run = seen(use("lawa", members=3, every_steps=1), ["train.steps=5"])
    for name in run.end:
        mean = sum(each[name] for each in run.iterates[-3:]) / 3
        assert torch.allclose(run.end[name], mean)


def test_an_average_that_is_not_final_is_a_view(seen):
    every = ["train.steps=3", "evaluation.every_steps=1"]
    run = seen(use("ema", final=False), every)
    plain = seen("", every)
    assert all(torch.equal(run.end[n], plain.end[n]) for n in plain.end)
    views = [r["view"] for r in run.records if r["kind"] == "evaluation"]
    assert views[:2] == ["", "ema"]


def test_wise_ft_chooses_on_validation(seen):
    options = {"alphas": [0.0, 0.25, 0.5, 1.0], "metric": "nll"}
    run = seen(use("wise-ft", **options), ["train.steps=6", "optimizer.lr=2.0"])
    report = json.loads((run.outcome.folder / "report.json").read_text())["wise-ft"]
    assert [each["alpha"] for each in report["sweep"]] == options["alphas"]
    best = min(report["sweep"], key=lambda each: each["value"])
    assert report["alpha"] == best["alpha"]
    first, *_, last = states(run)
    for name in run.end:
        expected = torch.lerp(first[name], last[name], report["alpha"])
        assert torch.allclose(run.end[name], expected, atol=1e-14)
    final = run.outcome.metrics["nll"]
    assert final == pytest.approx(
        best["value"], rel=1e-5
    )  # the same split, evaluated by the engine
