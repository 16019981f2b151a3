"""The task of a config: the one it names, or the default of its head."""

import pytest

from tljax.config import Config, ModelConfig
from tljax.errors import UserError
from tljax.models.heads import HEADS
from tljax.tasks import TASKS, task_of


def make_config(task, head):
    return Config(task=task, model=ModelConfig(head=head))


def test_every_head_has_default_task():
    tasks = {head: task_of(make_config(None, head)).name for head in HEADS}
    assert tasks == {
        "classifier": "classification",
        "unet": "segmentation",
        "fcn": "segmentation",
        "detector": "detection",
    }
    for head, task in tasks.items():
        assert task_of(make_config(task, head)) is TASKS[task]


@pytest.mark.parametrize(
    ("task", "head", "message"),
    [
        ("segmentatoin", "unet", 'There is no task "segmentatoin"; did you mean "segmentation"?'),
        ("segmentation", "classifier", "task='segmentation' does not fit model.head='classifier': take unet or fcn."),
    ],
)
def test_task_of_rejects_unsupported_task(task, head, message):
    with pytest.raises(UserError) as error:
        task_of(make_config(task, head))
    assert str(error.value) == message
