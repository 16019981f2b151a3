"""Which task a config has: the one that it names, or its head's."""

import pytest

from tljax.config import Config, ModelConfig
from tljax.errors import UserError
from tljax.models.heads import HEADS
from tljax.tasks import TASKS, task_of


def config_of(task, head):
    return Config(task=task, model=ModelConfig(head=head))


def test_every_head_has_a_default_task():
    tasks = {head: task_of(config_of(None, head)).name for head in HEADS}
    assert tasks == {
        "classifier": "classification",
        "unet": "segmentation",
        "fcn": "segmentation",
        "detector": "detection",
    }
    for head, task in tasks.items():
        assert task_of(config_of(task, head)) is TASKS[task]


@pytest.mark.parametrize(
    ("task", "head", "words"),
    [
        ("segmentatoin", "unet", 'There is no task "segmentatoin"; did you mean "segmentation"?'),
        ("segmentation", "classifier", "task='segmentation' does not fit model.head='classifier': take unet or fcn."),
    ],
)
def test_a_task_that_does_not_fit_is_a_one_line_error(task, head, words):
    with pytest.raises(UserError) as error:
        task_of(config_of(task, head))
    assert str(error.value) == words
