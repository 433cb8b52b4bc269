"""The smallest evaluation: 32 pixels, every part of the real thing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import encoder_of

from gen1_core.evaluation.benchmark import BenchmarkConfig
from gen1_core.evaluation.judge_nets import JudgeConfig
from gen1_core.evaluation.methods import Editor
from gen1_core.evaluation.run import EvaluationConfig, evaluate
from gen1_core.evaluation.sweeps import SweepConfig
from gen1_core.models.depth import DepthNetConfig

SMALL = EvaluationConfig(
    benchmark=BenchmarkConfig(seeds=(3,), clips=2, frames=3, size=32, supersample=1),
    judges=JudgeConfig(
        scenes=1,
        looks=2,
        size=32,
        supersample=1,
        look_steps=2,
        look_batch=4,
        depth_steps=2,
        depth_batch=2,
        widths=(8, 8),
        depth=DepthNetConfig(channels=(4, 8), norm_num_groups=2, train_size=32),
    ),
    sweeps=SweepConfig(edits=1, steps=1, temporal_scales=(0.5, 1.5), blur_levels=(0, 7), structure_scales=(1.0, 3.0)),
    validation=1,
)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished evaluation and its report."""

    folder: Path
    editor: Editor
    results: dict[str, Any]

    def again(self, folder: Path | None = None, **changed: Any) -> dict[str, Any]:
        """The same call once more, perhaps into another folder, by the same judges."""
        encoder = encoder_of(self.editor.gen1)
        given = {"weights": "random", "judges_folder": self.folder} | changed
        return evaluate(self.editor, encoder, SMALL, folder or self.folder, **given)
