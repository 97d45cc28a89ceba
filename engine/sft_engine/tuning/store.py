"""The folder of a study, which several processes may work in, and any of them may be killed.

study.json      recipe, overrides, space, metric, direction, seed: what must be the same to go on
journal.log     every trial, by Optuna: JSON, a line an event (no pickle is read or written)
trials/NAME/    run folders, as `sft-engine run` writes them
locks/          held by whoever runs a trial; a trial that runs and is not locked was killed
best.toml       the recipe of the best trial so far
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sft_engine import order
from sft_engine.errors import OutputError, RecipeError
from sft_engine.records import remove, write_json
from sft_engine.sentences import reason_of
from sft_engine.tuning.locks import FileLock, JournalLock

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from sft_engine.tuning.space import Domain

RETRY_OF, FOLDER, REASON = "retry_of", "folder", "reason"
"""Attributes of a trial: the killed trial that it repeats, its run folder, why it failed for good."""


@dataclass(frozen=True)
class Terms:
    """What a study is about; a study goes on only under the same terms.

    Args:
        recipe: As TOML.
        overrides: Those that hold for every trial.
        space: Domains by key, as the user wrote them.
        metric: Of the validation split.
        direction: `max` or `min`: which way the metric is better.
        seed: Of the sampler.
    """

    recipe: str
    overrides: list[str]
    space: dict[str, str]
    metric: str
    direction: str
    seed: int


@dataclass
class Store:
    """The folder of one study, opened by one process.

    Args:
        folder: Of the study.
        terms: What it is about.
        space: Domains by key.
    """

    folder: Path
    terms: Terms
    space: Mapping[str, Domain]
    study: Study = field(init=False)
    _locks: dict[int, FileLock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_own(self.folder)
        try:
            for part in (self.folder / "trials", self.folder / "locks"):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"--output {self.folder}: {reason_of(error)}, or choose another folder"
            ) from error
        with self._alone():
            self._agree()
            self.study = _open_study(self.folder, self.terms.direction)

    def _alone(self) -> FileLock:
        return FileLock(self.folder / "locks" / "study.lock")

    def _agree(self) -> None:
        """Write the terms, or compare with those that are there.

        Raises:
            OutputError: the folder belongs to another study.
        """
        path = self.folder / "study.json"
        own = asdict(self.terms)
        if not path.exists():
            write_json(path, own)
            return
        theirs = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name, value in own.items() if theirs.get(name) != value]
        if different:
            raise OutputError(
                f"--output {self.folder} holds a study with other {' and '.join(different)} "
                f"({path}), and trials of both could not be compared: choose another folder"
            )

    # --- trials ----------------------------------------------------------------------------------

    def begin(self, wanted: int) -> Trial | None:
        """Begin the next trial; None if `wanted` have ended, or will when those that run now do."""
        with self._alone():
            self._take_back_killed()
            trials = self.study.get_trials(deepcopy=False)
            running = [t for t in trials if t.state.name == "RUNNING"]
            if len(running) + sum(map(is_spent, trials)) >= wanted:
                return None
            self._reseed(trials)
            trial = self.study.ask({key: d.distribution() for key, d in self.space.items()})
            if FOLDER not in trial.user_attrs:
                folders = {t.user_attrs[FOLDER] for t in trials if FOLDER in t.user_attrs}
                trial.set_user_attr(FOLDER, f"trial-{len(folders):03d}")
            lock = self._lock_of(trial.number)
            lock.acquire()
            self._locks[trial.number] = lock
        return trial

    def _reseed(self, trials: list[FrozenTrial]) -> None:
        """Let the next proposal depend on the seed and on how many there were, not on the process."""
        from optuna.samplers import TPESampler

        proposed = [t for t in trials if RETRY_OF not in t.user_attrs and self._is_whole(t)]
        seed = order.mix(self.terms.seed, len(proposed)) & 0xFFFFFFFF
        self.study.sampler = TPESampler(seed=seed)

    def _is_whole(self, trial: FrozenTrial) -> bool:
        """Say whether a trial has all its values; one that was killed as it began has not."""
        return set(self.space) <= set(trial.params)

    def end(self, trial: Trial, value: float | None = None, *, reason: str = "") -> None:
        """End a trial: with its value, without one as pruned, or with the reason why it failed."""
        from optuna.trial import TrialState

        if reason:
            trial.set_user_attr(REASON, reason)
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            self.study.tell(trial, value, state=state)
        self._locks.pop(trial.number).release()

    def give_back(self, trial: Trial) -> None:
        """Leave a trial that was interrupted to whoever comes next."""
        with self._alone():
            self._repeat(self.study.get_trials(deepcopy=False)[trial.number])
        self._locks.pop(trial.number).release()

    def _take_back_killed(self) -> None:
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name != "RUNNING":
                continue
            lock = self._lock_of(trial.number)
            if lock.acquire(wait=False):
                self._repeat(trial)
                lock.release()

    def _repeat(self, trial: FrozenTrial) -> None:
        """Mark a trial as failed, and have its values tried again in the same run folder."""
        from optuna.trial import TrialState

        again = (t.user_attrs.get(RETRY_OF) for t in self.study.get_trials(deepcopy=False))
        if self._is_whole(trial) and trial.number not in again:
            kept = {k: v for k, v in trial.user_attrs.items() if k == FOLDER}
            self.study.enqueue_trial(trial.params, {RETRY_OF: trial.number, **kept})
        self.study.tell(trial.number, state=TrialState.FAIL)

    def discard(self) -> None:
        """Delete a study in which no trial has ended and none runs: its recipe was wrong."""
        with self._alone():
            trials = self.study.get_trials(deepcopy=False)
            if not any(is_spent(t) or t.state.name == "RUNNING" for t in trials):
                remove(
                    [
                        self.folder / "study.json",
                        self.folder / "journal.log",
                        self.folder / "trials",
                    ]
                )

    def earlier_values(self, trial: Trial) -> dict[int, float]:
        """Return what the trial that this one repeats had reported."""
        earlier = trial.user_attrs.get(RETRY_OF)
        if earlier is None:
            return {}
        values: dict[int, float] = self.study.get_trials(deepcopy=False)[
            earlier
        ].intermediate_values
        return values

    def folder_of(self, trial: Trial | FrozenTrial) -> Path:
        """Return the run folder of a trial."""
        return self.folder / "trials" / str(trial.user_attrs[FOLDER])

    def _lock_of(self, number: int) -> FileLock:
        return FileLock(self.folder / "locks" / f"trial-{number:03d}.lock")

    def overrides_of(self, trial: Trial | FrozenTrial) -> list[str]:
        """Return the values of a trial as `--set` takes them."""
        return [f"{key}={domain.write(trial.params[key])}" for key, domain in self.space.items()]


def is_spent(trial: FrozenTrial) -> bool:
    """Say whether a trial counts: it was completed or pruned, or failed for good."""
    return trial.state.name in ("COMPLETE", "PRUNED") or REASON in trial.user_attrs


def _require_own(folder: Path) -> None:
    """Refuse a folder that holds something else than a study."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--output {folder} is a file: choose a folder")
    parts = {"trials", "locks"}  # what a study that was not begun has left
    if folder.is_dir() and not (folder / "study.json").exists():
        others = sorted(p.name for p in folder.iterdir() if p.name not in parts)
        if others:
            raise OutputError(
                f"--output {folder} holds {others[0]!r} and no study: choose a new or empty folder, or that "
                "of a study to go on with it"
            )


def _open_study(folder: Path, direction: str) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal = folder / "journal.log"
    lock = JournalLock(folder / "locks" / "journal.lock", journal)
    backend = JournalFileBackend(str(journal), cast("Any", lock))
    with _no_remarks():
        return optuna.create_study(
            storage=JournalStorage(backend),
            study_name="sft-engine",
            direction="maximize" if direction == "max" else "minimize",
            pruner=optuna.pruners.MedianPruner(),
            load_if_exists=True,
        )


@contextmanager
def _no_remarks() -> Iterator[None]:
    """Keep Optuna from logging that it opened a study."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def require_optuna() -> None:
    """Say what to install where Optuna is missing.

    Raises:
        RecipeError: it is.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise RecipeError(
            "`sft-engine tune` needs Optuna, which is not installed: `pip install 'sft-engine[tune]'`"
        ) from None
