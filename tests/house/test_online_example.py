"""The training loop of examples/online: it learns, survives a kill and can be replayed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mixopt.online import Session, replay

LOOP = Path(__file__).resolve().parents[2] / "examples" / "online" / "loop.py"


@pytest.fixture
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("online_loop", LOOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TOKENS = 60_000  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("controller", ["aioli", "tikmix_d"])
def test_the_loop_goes_on_after_a_kill(loop: ModuleType, controller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.main(controller, str(tmp_path / "whole"))
    save, saves = Session.save, []

    def killed(self: Session, path: Any) -> None:
        saves.append(path)
        if len(saves) == 3:
            raise KeyboardInterrupt
        save(self, path)

    monkeypatch.setattr(Session, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.main(controller, str(tmp_path / "cut"))
    loop.main(controller, str(tmp_path / "cut"))
    whole, cut = ((tmp_path / name / "trace.jsonl").read_text() for name in ("whole", "cut"))
    assert cut == whole, "every loss and every count to the last digit"
    assert len(replay(tmp_path / "cut" / "trace.jsonl")) == whole.count("\n")


def test_the_loop_learns_and_mixes_as_it_was_told(loop: ModuleType, tmp_path: Path) -> None:
    loop.main("static", str(tmp_path))
    saved = np.load(next(tmp_path.glob("model-*.npz")))
    text = "".join(loop.documents()["manual"][-20:])
    assert loop.loss_and_gradient(saved["logits"], text)[0] < 4.5 < np.log(256)
    assert len(LOOP.read_text(encoding="utf-8").splitlines()) < 130


def test_its_gradient_is_the_slope_of_its_loss(loop: ModuleType) -> None:
    rng = np.random.default_rng(0)
    logits, step = rng.normal(size=(256, 256)), 1e-5
    _, gradient = loop.loss_and_gradient(logits, "banana bandana")
    for place in ((ord("a"), ord("n")), (ord("n"), ord("a")), (ord("a"), ord("z"))):
        higher, lower = logits.copy(), logits.copy()
        higher[place] += step
        lower[place] -= step
        slope = (loop.loss_and_gradient(higher, "banana bandana")[0] - loop.loss_and_gradient(lower, "banana bandana")[0]) / (2 * step)
        assert gradient[place] == pytest.approx(slope, abs=1e-6)
