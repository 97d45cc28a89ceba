"""AdaLoRA: low-rank changes whose ranks go, while training, to the layers that need them most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from sft_engine import Capabilities, LossTerm, RecipeError, hookimpl
from sft_freezing.adapters import Adapted

if TYPE_CHECKING:
    from torch import Tensor

    from sft_engine import Run


def far_from_orthogonal(factors: Iterable[tuple[str, Tensor]]) -> Tensor:
    """Return the mean distance of singular vectors from orthogonal ones, `|P P^T - I|` in Frobenius norm.

    Zhang et al. 2023 (AdaLoRA), equation 4; not squared, and the mean over matrices, as in PEFT.

    Args:
        factors: Parameters by name: `lora_A` has vectors as rows (rank, inputs), `lora_B` as columns.
    """
    import torch

    norms = []
    for name, factor in factors:
        rows = factor if "lora_A" in name else factor.T
        own = torch.eye(rows.shape[0], dtype=rows.dtype, device=rows.device)
        norms.append(torch.linalg.matrix_norm(rows @ rows.T - own))
    return torch.stack(norms).mean()


class AdaLoRA(Adapted):
    """Learn low-rank changes as singular values and vectors, and drop the least important values.

    Zhang et al. 2023: W + alpha / rank * B E A with diagonal E, which begins as zeros. A value counts as
    important where it and its vectors have large weights times gradients, smoothed over steps. The head
    trains whole.

    Args:
        rank: Rank of every layer in the beginning.
        target: Mean rank in the end.
        alpha: Strength: the change counts alpha / rank times.
        dropout: Share of the inputs of A that is dropped in training.
        start: Share of the run before which no value is dropped.
        end: Share of the run at which there are as many as in the end; which ones is settled then.
        every: Steps between two times of dropping; what is dropped may come back until the end.
        orthogonal: Weight of the loss term that keeps singular vectors orthogonal.
        smoothing: Of the importance, and of its uncertainty: the share of what was before.
        targets: Layers that get an adapter: `auto` for every linear layer below the head; or shell patterns of
            layers or layer groups, one or a list.
    """

    method = "adalora"
    capabilities = Capabilities(replayable=True)

    def __init__(  # noqa: PLR0913, PLR0917 - options of a recipe
        self,
        rank: Annotated[int, Gt(0)] = 12,
        target: Annotated[int, Gt(0)] = 8,
        alpha: Annotated[float, Gt(0)] = 16.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        start: Annotated[float, Ge(0), Lt(1)] = 0.1,
        end: Annotated[float, Gt(0), Le(1)] = 0.5,
        every: Annotated[int, Gt(0)] = 10,
        orthogonal: Annotated[float, Ge(0)] = 0.5,
        smoothing: Annotated[float, Gt(0), Lt(1)] = 0.85,
        targets: str | tuple[str, ...] = "auto",
    ) -> None:
        super().__init__(targets, ())
        self.rank, self.target, self.alpha, self.dropout = rank, target, alpha, dropout
        self.start, self.end, self.every = start, end, every
        self.orthogonal, self.smoothing = orthogonal, smoothing
        self._ranks: Any = None
        self._model: Any = None
        self._vectors: list[tuple[str, Any]] = []
        self._kept: dict[str, list[bool]] | None = None
        self._restored: dict[str, Any] = {}

    def check(self) -> None:
        """Refuse a timetable or ranks that run backwards.

        Raises:
            RecipeError: `start` is not before `end`, or `target` is above `rank`.
        """
        if self.start >= self.end:
            raise RecipeError(
                f"`freezing.start`: found {self.start:g}, allowed is less than `end`, which is {self.end:g}"
            )
        if self.target > self.rank:
            raise RecipeError(
                f"`freezing.target`: found {self.target}, allowed is `rank`, which is {self.rank}, or less"
            )
        super().check()

    def settings(self) -> dict[str, Any]:
        """Return the options by PEFT's own names; steps are known when the run is."""
        return {
            "init_r": self.rank,
            "target_r": self.target,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "deltaT": self.every,
            "beta1": self.smoothing,
            "beta2": self.smoothing,
            "orth_reg_weight": self.orthogonal,
            "total_step": 1,
        }

    @hookimpl
    def sft_setup(self, run: Run) -> None:
        """Settle the timetable, and go on with what importance was measured before a resume.

        Raises:
            RecipeError: the run is too short, or its parameters are sharded.
        """
        from peft.tuners import adalora

        from sft_engine.sharding import is_sharded
        from sft_freezing.injection import NAME

        if is_sharded(run.accelerator):
            raise RecipeError(
                "`freezing`: adalora compares weights of all layers, which FSDP spreads over processes; "
                'take `use = "lora"`, or launch without FSDP'
            )
        total = run.clock.total_steps
        first, last = round(self.start * total), round(self.end * total)
        if first >= last:
            raise RecipeError(
                f"`freezing.end`: of {total} steps, none is between `start` and `end`; train longer, or "
                "set them further apart"
            )
        self._model = run.model
        config = self._model.peft_config[NAME]
        config.total_step, config.tinit, config.tfinal = total, first, total - last
        allocator: Any = adalora.RankAllocator  # untyped
        self._ranks = allocator(self._model, config, NAME)
        self._vectors = [
            (name, parameter)
            for name, parameter in self._model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        ]
        self._take_up(run)

    def _take_up(self, run: Run) -> None:
        for part in ("exp_avg_ipt", "exp_avg_unc"):
            values = {n: v.to(run.device) for n, v in self._restored.get(part, {}).items()}
            setattr(self._ranks, part, values)
            self._ranks.ipt = dict(values)  # PEFT begins anew with what is not in there

    @hookimpl
    def sft_loss_terms(self) -> list[LossTerm]:
        """Keep singular vectors orthogonal."""
        if not self.orthogonal:
            return []
        value = far_from_orthogonal(self._vectors)
        return [LossTerm("orthogonality", value, self.orthogonal, per="step")]

    @hookimpl
    def sft_step_end(self, run: Run) -> None:
        """Measure importance, and set singular values to zero that are dropped."""
        ranks, model, step = self._ranks, self._model, run.clock.step + 1
        if self._kept is not None:
            ranks.mask_using_rank_pattern(model, self._kept)
            return
        settled = step >= ranks.peft_config.total_step - ranks.peft_config.tfinal
        ranks.update_ipt(model)
        budget, due = ranks.budget_schedule(step)
        if (due or settled) and budget < ranks.init_bgt:
            kept = ranks.mask_to_budget(model, budget)
            self._kept = kept if settled else None

    def state_dict(self) -> dict[str, Any]:
        """Return the importance of every weight, and which singular values are kept for good."""
        measured = {p: dict(getattr(self._ranks, p)) for p in ("exp_avg_ipt", "exp_avg_unc")}
        return {**measured, "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._restored = {part: state[part] for part in ("exp_avg_ipt", "exp_avg_unc")}
        self._kept = state["kept"]
        if self._ranks is not None:  # rolled back, not resumed
            for part, values in self._restored.items():
                setattr(self._ranks, part, dict(values))
