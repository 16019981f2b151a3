"""Values and gradients of reference implementations of the losses, as golden values.

Writes losses.npz next to this file, all in float64. Keys are "{loss}-{case}:{path}", where `path` is a path in the four
arguments of a loss (`outputs.weak.logits`, `references.teachers.0.maps.stage1`, ...), `value`, or `grads.` and a path
in `outputs`. Inputs except `prior` are multiples of 1/1024, so that float32 represents them exactly. Feature maps and
their gradients are NHWC.

Reference implementations, by loss:
    cross_entropy, aux_cross_entropy, source_cross_entropy
                        torch.nn.functional.cross_entropy, compared with timm's and Keras'
    distillation        Hinton et al.'s equation. TLLib's KnowledgeDistillationLoss omits the factor T², without which
                        the gradient falls with the temperature; times T² it must be equal
    lwf                 TLLib's KnowledgeDistillationLoss, which is the divergence, plus the targets' entropy, which
                        makes it Li & Hoiem's cross-entropy; compared with torch.nn.functional.cross_entropy
    attention_transfer  the loss of Zagoruyko & Komodakis' code, reimplemented, after torch's antialiased interpolation
    hints               torch.nn.functional.mse_loss, after torch's antialiased interpolation
    delta               TLLib's BehavioralRegularization over the batch size: it sums over the batch
    l2, l2_sp           TLLib's L2Regularization of the new kernels, SPRegularization
    pseudo_label, fixmatch
                        TLLib's ConfidenceBasedSelfTrainingLoss, whose threshold is "above" where tljax's is "at least".
                        Its targets are aligned by ReMixMatch's equation if `distribution_alignment` is 1, and
                        the loss is multiplied by the warm-up
    mean_teacher        TLLib's L2ConsistencyLoss over the number of classes, over which it sums, and sigmoid_warm_up

Run with TLLIB, a checkout of github.com/thuml/Transfer-Learning-Library:
    pip install torch timm keras numpy
    pip install --no-deps torchvision
    python tests/golden/make_losses.py TLLIB
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
# This module registers torchvision's compiled operators, and fails without them.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from timm.loss import LabelSmoothingCrossEntropy  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

HERE = Path(__file__).resolve().parent
TLLIB = Path(sys.argv[1]) / "tllib"


def tllib(name):
    """Load one file of the library: the package itself has more dependencies than its losses."""
    spec = importlib.util.spec_from_file_location(name, TLLIB / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KnowledgeDistillationLoss = tllib("regularization/knowledge_distillation").KnowledgeDistillationLoss
regularization, pi_model = tllib("regularization/delta"), tllib("self_training/pi_model")
ConfidenceBasedSelfTrainingLoss = tllib("self_training/pseudo_label").ConfidenceBasedSelfTrainingLoss


def agree(a, b):
    """Return the first of two reference values, which must be equal."""
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    return a


def smoothed(logits, batch, hparams):
    label, smoothing = batch["label"], hparams["label_smoothing"]
    value = F.cross_entropy(logits, label, label_smoothing=smoothing)
    onehot = F.one_hot(label, logits.shape[1]).double()
    agree(value, keras.losses.categorical_crossentropy(onehot, logits, True, smoothing).mean())
    return agree(value, LabelSmoothingCrossEntropy(smoothing)(logits, label))


def cross_entropy(outputs, batch, references, hparams):
    return smoothed(outputs["logits"], batch, hparams)


def aux_cross_entropy(outputs, batch, references, hparams):
    return smoothed(outputs["aux1"], batch, hparams) + smoothed(outputs["aux2"], batch, hparams)


def source_cross_entropy(outputs, batch, references, hparams):
    return smoothed(outputs["source"], batch, hparams)


def distillation(outputs, batch, references, hparams):
    student = outputs["logits"]
    temperature = hparams["temperature"]
    p = torch.stack([torch.softmax(t["logits"] / temperature, 1) for t in references["teachers"]]).mean(0)
    q = torch.softmax(student / temperature, 1)
    value = temperature**2 * (p * (p / q).log()).sum(1).mean()
    # The library takes one teacher's logits: T log p has the mean probabilities p.
    return agree(value, temperature**2 * KnowledgeDistillationLoss(temperature)(student, temperature * p.log()))


def lwf(outputs, batch, references, hparams):
    student = outputs["source"]
    source = references["source"]["logits"]
    temperature = hparams["temperature"]
    p = torch.softmax(source / temperature, 1)
    value = KnowledgeDistillationLoss(temperature)(student, source) - (p * p.log()).sum(1).mean()
    return agree(value, F.cross_entropy(student / temperature, p))


def resize(x, target):
    return F.interpolate(x, target.shape[2:], mode="bilinear", align_corners=False, antialias=True)


def nchw(x):
    return x.permute(0, 3, 1, 2)


def attention_transfer(outputs, batch, references, hparams):
    losses = []
    for teacher in references["teachers"]:
        for stage, features in teacher["maps"].items():
            student = nchw(outputs["maps"][stage]).pow(2).mean(1, keepdim=True)
            target = resize(nchw(features).pow(2).mean(1, keepdim=True), student)
            losses.append((F.normalize(student.flatten(1)) - F.normalize(target.flatten(1))).pow(2).mean())
    return sum(losses) / len(references["teachers"])


def hints(outputs, batch, references, hparams):
    (teacher,) = references["teachers"]
    pairs = [(nchw(outputs[f"hint_{stage}"]), nchw(features)) for stage, features in teacher["maps"].items()]
    return sum(F.mse_loss(student, resize(features, student)) for student, features in pairs)


def delta(outputs, batch, references, hparams):
    source = {stage: nchw(features) for stage, features in references["source"]["maps"].items()}
    student = {stage: nchw(outputs["maps"][stage]) for stage in source}
    return regularization.BehavioralRegularization()(source, student) / len(batch["label"])


def module_of(params):
    """Return a module with these tensors as its parameters, without copying them."""
    module = nn.Module()
    module.named_parameters = lambda: iter(params.items())
    module.parameters = lambda: iter(params.values())
    return module


def l2(outputs, batch, references, hparams):
    new = {p: x for p, x in outputs["params"].items() if p.endswith("kernel") and p not in references.get("params", {})}
    return regularization.L2Regularization(module_of(new))()


def l2_sp(outputs, batch, references, hparams):
    pretrained = {p: x for p, x in outputs["params"].items() if p in references["params"]}
    return regularization.SPRegularization(module_of(references["params"]), module_of(pretrained))()


def self_training(logits, outputs, hparams):
    targets = outputs["weak"]["logits"].detach()
    if hparams["distribution_alignment"]:
        unaligned = targets
        p = torch.softmax(targets, 1)
        p = p * hparams["prior"] / p.mean(0)
        targets = (p / p.sum(1, keepdim=True)).log()
        assert (targets.argmax(1) != unaligned.argmax(1)).any(), "the case does not exercise the alignment"
    share = min(1.0, hparams["progress"] / hparams["unlabelled_warmup"]) if hparams["unlabelled_warmup"] else 1.0
    loss, mask, _ = ConfidenceBasedSelfTrainingLoss(hparams["threshold"])(logits, targets)
    assert hparams["threshold"] == 0 or 0 < mask.sum() < len(mask), "the case does not exercise the threshold"
    return share * loss


def pseudo_label(outputs, batch, references, hparams):
    return self_training(outputs["weak"]["logits"], outputs, hparams)


def fixmatch(outputs, batch, references, hparams):
    return self_training(outputs["strong"]["logits"], outputs, hparams)


def mean_teacher(outputs, batch, references, hparams):
    student, teacher = (torch.softmax(x["logits"], 1) for x in (outputs["weak"], references["ema"]))
    warm = pi_model.sigmoid_warm_up(hparams["progress"], hparams["unlabelled_warmup"])
    return warm * pi_model.L2ConsistencyLoss()(student, teacher) / student.shape[1]


def cases():
    """Yield a reference implementation and the four arguments of the loss, as nested dicts and lists of arrays."""
    rng = np.random.default_rng(15)

    def draw(*shape, scale=1.0):
        return np.round(scale * rng.standard_normal(shape) * 1024) / 1024

    def maps(batch, shapes):
        return {stage: draw(batch, *shape) for stage, shape in shapes.items()}

    for size, classes, smoothing in ((1, 2, 0.0), (5, 7, 0.125)):
        for function, names in (
            (cross_entropy, ["logits"]),
            (aux_cross_entropy, ["logits", "aux1", "aux2"]),
            (source_cross_entropy, ["logits", "source"]),
        ):
            logits = {name: draw(size, classes, scale=3.0) for name in names}
            yield function, logits, {"label": rng.integers(0, classes, size)}, {}, {"label_smoothing": smoothing}
    for size, classes, teachers, temperature in ((1, 3, 1, 4.0), (4, 5, 2, 2.0), (3, 10, 3, 1.0)):
        references = {"teachers": [{"logits": draw(size, classes, scale=4.0)} for _ in range(teachers)]}
        yield distillation, {"logits": draw(size, classes, scale=4.0)}, {}, references, {"temperature": temperature}
        outputs = {"logits": draw(size, 2), "source": draw(size, classes, scale=3.0)}
        references = {"source": {"logits": draw(size, classes, scale=3.0)}}
        yield lwf, outputs, {}, references, {"temperature": temperature}
    # Stages of the student, and of each teacher: of the same size, smaller, larger, and not square.
    student = {"stage1": (4, 6, 3), "stage2": (2, 3, 5), "stage3": (1, 1, 4)}
    for size, teachers in (
        (1, [{"stage1": (4, 6, 3), "stage2": (2, 3, 5)}]),
        (3, [{"stage1": (7, 5, 2), "stage2": (2, 2, 4)}, {"stage2": (5, 7, 3)}]),
        (2, [{"stage2": (2, 3, 2)}, {"stage1": (3, 4, 3)}, {"stage1": (4, 6, 1), "stage2": (3, 2, 1)}]),
    ):
        references = {"teachers": [{"maps": maps(size, t)} for t in teachers]}
        yield attention_transfer, {"maps": maps(size, student)}, {}, references, {}
    for size, teacher in ((1, {"stage1": (4, 6, 2)}), (3, {"stage1": (7, 5, 2), "stage2": (3, 2, 4)})):
        outputs = {f"hint_{s}": draw(size, *student[s][:2], shape[2]) for s, shape in teacher.items()}
        references = {"teachers": [{"maps": maps(size, teacher)}]}
        yield hints, {"maps": maps(size, student)} | outputs, {}, references, {}
    for size in (1, 3):
        shapes = {stage: student[stage] for stage in ("stage1", "stage3")[:size]}
        batch = {"label": np.zeros(size, int)}
        yield delta, {"maps": maps(size, student)}, batch, {"source": {"maps": maps(size, shapes)}}, {}
    shapes = {
        "stem/conv/kernel": (3, 3, 2, 4),
        "stem/bn/scale": (4,),
        "head/dense/kernel": (4, 5),
        "head/dense/bias": (5,),
    }
    for paths in (("stem/conv/kernel", "stem/bn/scale"), tuple(shapes), ("stem/conv/kernel", "stage1/conv/kernel")):
        params = {path: draw(*shape) for path, shape in shapes.items()}
        source = {path: draw(*shapes.get(path, (1, 1, 4, 4))) for path in paths}
        for function in (l2, l2_sp):
            yield function, {"params": params}, {}, {"params": source}, {}
    yield l2, {"params": params}, {}, {}, {}
    for size, classes, balance, threshold, progress, ramp in (
        (1, 3, 0.0, 0.0, 0.25, 0.0),
        (8, 4, 0.0, 0.75, 0.25, 0.5),
        (12, 6, 1.0, 0.75, 0.75, 0.5),
    ):
        prior = rng.dirichlet(np.full(classes, 3.0))
        hparams = {
            "distribution_alignment": balance,
            "threshold": threshold,
            "progress": progress,
            "unlabelled_warmup": ramp,
            "prior": prior,
        }
        weak, strong, average = ({"logits": draw(size, classes, scale=3.0)} for _ in range(3))
        weak["logits"][:, 0] += 2 * balance  # a student that prefers one class
        yield pseudo_label, {"weak": weak}, {}, {}, hparams
        yield fixmatch, {"weak": weak, "strong": strong}, {}, {}, hparams
        yield mean_teacher, {"weak": weak}, {}, {"ema": average}, hparams


def flatten(tree, prefix=""):
    """Return nested dicts and lists as one dict with dotted keys."""
    if not isinstance(tree, dict | list):
        return {prefix[:-1]: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: value for name, node in items for key, value in flatten(node, f"{prefix}{name}.").items()}


def to_tensors(tree):
    """Convert arrays to tensors; plain numbers stay."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree.copy())
    if isinstance(tree, dict):
        return {name: to_tensors(node) for name, node in tree.items()}
    return [to_tensors(node) for node in tree] if isinstance(tree, list) else tree


def main():
    torch.set_default_dtype(torch.float64)
    keras.config.set_floatx("float64")
    arrays = {}
    count = {}
    for function, outputs, batch, references, hparams in cases():
        name = function.__name__
        case = f"{name}-{count.setdefault(name, 0)}"
        count[name] += 1
        arguments = {"outputs": outputs, "batch": batch, "references": references, "hparams": hparams}
        tensors = to_tensors(arguments)
        inputs = {key: value.requires_grad_() for key, value in flatten(tensors["outputs"]).items()}
        # Outputs that the loss does not use have gradient zero, even if it uses none.
        value = function(*tensors.values()) + torch.zeros((), requires_grad=True)
        grads = torch.autograd.grad(value, list(inputs.values()), materialize_grads=True)
        results = {"value": value.item(), "grads": dict(zip(inputs, (g.numpy() for g in grads), strict=True))}
        arrays |= {f"{case}:{key}": np.asarray(x) for key, x in flatten(arguments | results).items()}
    np.savez_compressed(HERE / "losses.npz", **arrays)
    print(count, os.path.getsize(HERE / "losses.npz"), "bytes")


if __name__ == "__main__":
    main()
