"""Decide when a function runs eagerly and when from its recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_vae.inference.program import Program
from pyro_vae.recording.recorder import NotRecordable, Recorder
from pyro_vae.wording import warn

__all__ = ["EAGER_CALLS", "ENGINES", "Replayed"]

ENGINES = ("auto", "eager", "recorded", "compiled")

# Recording takes about as long as so many calls. Counted, not timed: the same run does it again.
EAGER_CALLS = 30


class Replayed:
    """A function of tensors that gives what its recording gives, where there is one.

    Args:
        program: What ``function`` runs.
        function: Returns tensors, or None.
        engine: "eager" for never; "recorded" and "compiled" from the first call on, with a warning
            where that cannot be; "auto" once so many calls were made that it is worth it.
        watched: What else ``function`` depends on, by name.
        num_calls: How many calls are to be expected; 0 where that is not known.
        rare: Says of arguments whether their like come so rarely that nothing is compiled for them.
    """

    def __init__(
        self,
        program: Program,
        function: Callable[..., Any],
        *,
        engine: str,
        watched: dict[str, Any] | None = None,
        num_calls: int = 0,
        rare: Callable[..., bool] | None = None,
    ) -> None:
        self.waits = EAGER_CALLS if engine == "auto" else 0
        self._recorder = None
        self._warns = engine in ("recorded", "compiled")
        if engine != "eager":
            self._recorder = Recorder(
                program, function,
                watched=watched, engine=engine, num_calls=num_calls, rare=rare,
            )  # fmt: skip

    @property
    def gave_up(self) -> bool:
        """Whether no recording will be made any more."""
        return self._recorder is None

    def __call__(
        self, num_done: int, parameters: Mapping[str, Tensor] | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, ...] | None:
        """Return the function's tensors; None where the caller has to run it.

        Args:
            num_done: How many calls were made before.
            parameters: The tensors that the function may take gradients for; None: it takes none.
            args: The function's arguments.
            kwargs: Further arguments, with which it cannot be recorded.
        """
        if self._recorder is None or num_done < self.waits:
            return None
        try:
            if self._recorder.forget_if_changed():
                return None
            if kwargs or not all(isinstance(a, Tensor) and not a.requires_grad for a in args):
                raise NotRecordable(
                    "it is called with other arguments than tensors without gradients"
                )
            return self._recorder(parameters, *args)
        except NotRecordable as reason:
            self.give_up(str(reason))
            return None

    def give_up(self, reason: str = "") -> None:
        """Make no recording any more; say why, where one was asked for."""
        if self._recorder is not None and reason and self._warns:
            warn(f"running eagerly, since {reason}")
        self._recorder = None

    def forget(self) -> None:
        """Drop all recordings."""
        if self._recorder is not None:
            self._recorder.forget()
