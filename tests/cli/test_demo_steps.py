"""What the steps of the demo depend on, so that a finished one is done again when it has to be."""

from dataclasses import replace

import pytest

from recsys.cli.demo_steps import steps_of_models
from recsys.settings import Settings, Training


@pytest.mark.parametrize("model", ["sasrec", None])
def test_a_single_stage_is_trained_again_when_scenes_change_what_they_hide(redis_url, model):
    settings = Settings(training=Training(model=model))
    settings = replace(settings, online_store=replace(settings.online_store, url=redis_url))
    scenes = {name: replace(one, hide_consumed=True) for name, one in settings.pipeline.scenes.items()}
    hidden = replace(settings, pipeline=replace(settings.pipeline, scenes=scenes))
    before, after = ({step.name: step.settings for step in steps_of_models(s)} for s in (settings, hidden))
    assert (before["retrieval"] != after["retrieval"]) is (model is not None)
    assert before["ranker"] != after["ranker"]
