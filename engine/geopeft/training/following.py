"""A process that follows in a training on several: it gives the gradients of its part of every batch."""

from __future__ import annotations

from typing import Any

import torch

from geopeft.data.acquisition import Whereabouts
from geopeft.data.batches import Batch
from geopeft.events import Reporter
from geopeft.job import FitJob
from geopeft.models import SegmentationModel, build
from geopeft.models.backbones.transformer import keep_little
from geopeft.models.spec import ModelSpec
from geopeft.training.learning import Computed, Learner
from geopeft.training.together import Team, joined


def run(job: FitJob, reporter: Reporter) -> dict[str, Any]:
    """Follows until the leader ends; writes nothing and says nothing.

    Raises:
        JobError: PROCESS_LOST, when the leader is gone.
    """
    with joined(job.device) as team:
        if team is not None:
            _follow(team, job)
    return {}


def _follow(team: Team, job: FitJob) -> None:
    learner: Learner | None = None
    adapter: list[torch.nn.Parameter] = []
    while (note := team.hear())["what"] != "end":
        if note["what"] == "model":
            learner = None
            model = _built(team, note, job)
            adapter = [p for p in model.backbone.parameters() if p.requires_grad]
            learner = Learner(model, Computed(model))
        elif learner is not None:
            for parameter in adapter:
                parameter.requires_grad_(note["adapter_learns"])
            learner.help(team, _batch(team, note))


def _built(team: Team, note: dict[str, Any], job: FitJob) -> SegmentationModel:
    """The leader's model, with all that is stored of it."""
    spec = ModelSpec.model_validate(note["spec"])
    from_file = {"pretrained": bool(note["weights"]), "weights_sha256": note["sha256"]}
    model = build(spec, None, weights_dir=job.weights_dir, **from_file).to(team.device)
    keep_little(model.backbone, job.low_memory)
    state = {}
    for name, tensor in model.trainable_state().items():
        state[name] = tensor.to(team.device)
        team.share(state[name])
    model.load_trainable_state({name: tensor.cpu() for name, tensor in state.items()})
    return model.to(memory_format=torch.channels_last)


def _batch(team: Team, note: dict[str, Any]) -> Batch:
    """The leader's whole batch; its values are filled where they were not valid."""
    values = torch.empty(note["shape"], device=team.device)
    count, _, height, width = note["shape"]
    class_ids = torch.empty((count, height, width), dtype=torch.uint8, device=team.device)
    team.share(values)
    team.share(class_ids)
    taken = None
    if note["taken"]:
        parts = [torch.empty(shape, dtype=torch.float32, device=team.device) for shape in note["taken"]]
        for part in parts:
            team.share(part)
        taken = Whereabouts(*(part.cpu().numpy() for part in parts))
    valid = torch.ones((count, height, width), dtype=torch.bool).numpy()
    return Batch(values.cpu().numpy(), valid, class_ids.cpu().numpy(), taken)
