"""One small evaluation for all tests here: random weights, 32 pixels, every part of the real thing."""

from dataclasses import replace

import pytest
from evaluation.small import SMALL, Finished
from parts import encoder_of, tiny_gen1

from gen1_core.evaluation.methods import Editor
from gen1_core.evaluation.report import write_report
from gen1_core.evaluation.run import evaluate


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Made once; tests leave it as they find it."""
    folder = tmp_path_factory.mktemp("evaluation")
    gen1, other = tiny_gen1(), tiny_gen1(seed=9)
    editor = Editor(gen1=gen1, unstructured=other, options=replace(gen1.defaults, content_scale=1.5))
    results = evaluate(editor, encoder_of(gen1), SMALL, folder, weights="random")
    write_report(folder, results)
    return Finished(folder=folder, editor=editor, results=results)
