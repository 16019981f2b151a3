"""Values and gradients of reference implementations of the objectives, as golden values.

Writes objectives.npz next to this file, all in float64. Keys are "{objective}-{case}:{what}", where `what` is a place
in the four arguments of an objective (`outputs.weak.logits`, `reference.teachers.0.maps.stage1`, ...), `value`, or
`grads.` and a place in `outputs`. Inputs, but `prior`, are multiples of 1/1024, so that float32 holds them as they are.
Maps and their gradients are NHWC.

References, by objective:
    cross_entropy, aux_cross_entropy, source_cross_entropy
                        torch.nn.functional.cross_entropy, held against timm's and Keras'
    distillation        Hinton et al.'s equation. TLLib's KnowledgeDistillationLoss leaves out the factor T², without
                        which the gradient falls with the temperature; times T² it must be the same
    lwf                 TLLib's KnowledgeDistillationLoss, which is the divergence, plus the targets' entropy, which
                        makes it Li & Hoiem's cross-entropy; held against torch.nn.functional.cross_entropy
    attention_transfer  the loss of Zagoruyko & Komodakis' code, written anew, after torch's antialiased interpolation
    hints               torch.nn.functional.mse_loss, after torch's antialiased interpolation
    delta               TLLib's BehavioralRegularization over the batch size: it sums over the batch
    l2, l2_sp           TLLib's L2Regularization of the new kernels, SPRegularization
    pseudo_label, fixmatch
                        TLLib's ConfidenceBasedSelfTrainingLoss, which has "above" where ours has "at least". Its
                        targets are aligned by ReMixMatch's equation where `balance` is 1, and it is times the ramp
    mean_teacher        TLLib's L2ConsistencyLoss over the number of classes, over which it sums, and sigmoid_warm_up

Run with TLLIB, a checkout of github.com/thuml/Transfer-Learning-Library:
    pip install torch timm keras numpy
    pip install --no-deps torchvision
    python tests/golden/make_objectives.py TLLIB
"""

import importlib.util
import os
import sys
import types
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
# It describes the compiled operators, and fails without them.
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
    """One file of the library: the package itself asks for more than its losses need."""
    spec = importlib.util.spec_from_file_location(name, TLLIB / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KnowledgeDistillationLoss = tllib("regularization/knowledge_distillation").KnowledgeDistillationLoss
regularization, pi_model = tllib("regularization/delta"), tllib("self_training/pi_model")
ConfidenceBasedSelfTrainingLoss = tllib("self_training/pseudo_label").ConfidenceBasedSelfTrainingLoss


def agree(a, b):
    """The first of two references, which must say the same."""
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    return a


def smoothed(logits, batch, hyper):
    label, smoothing = batch["label"], hyper["label_smoothing"]
    value = F.cross_entropy(logits, label, label_smoothing=smoothing)
    onehot = F.one_hot(label, logits.shape[1]).double()
    agree(value, keras.losses.categorical_crossentropy(onehot, logits, True, smoothing).mean())
    return agree(value, LabelSmoothingCrossEntropy(smoothing)(logits, label))


def cross_entropy(outputs, batch, reference, hyper):
    return smoothed(outputs["logits"], batch, hyper)


def aux_cross_entropy(outputs, batch, reference, hyper):
    return smoothed(outputs["aux1"], batch, hyper) + smoothed(outputs["aux2"], batch, hyper)


def source_cross_entropy(outputs, batch, reference, hyper):
    return smoothed(outputs["source"], batch, hyper)


def distillation(outputs, batch, reference, hyper):
    own, temperature = outputs["logits"], hyper["temperature"]
    p = torch.stack([torch.softmax(t["logits"] / temperature, 1) for t in reference["teachers"]]).mean(0)
    q = torch.softmax(own / temperature, 1)
    value = temperature**2 * (p * (p / q).log()).sum(1).mean()
    # The library takes a teacher's logits: those that have the mean's probabilities.
    return agree(value, temperature**2 * KnowledgeDistillationLoss(temperature)(own, temperature * p.log()))


def lwf(outputs, batch, reference, hyper):
    own, theirs, temperature = outputs["source"], reference["source"]["logits"], hyper["temperature"]
    p = torch.softmax(theirs / temperature, 1)
    value = KnowledgeDistillationLoss(temperature)(own, theirs) - (p * p.log()).sum(1).mean()
    return agree(value, F.cross_entropy(own / temperature, p))


def sized(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False, antialias=True)


def nchw(x):
    return x.permute(0, 3, 1, 2)


def attention_transfer(outputs, batch, reference, hyper):
    losses = []
    for teacher in reference["teachers"]:
        for stage, theirs in teacher["maps"].items():
            own = nchw(outputs["maps"][stage]).pow(2).mean(1, keepdim=True)
            theirs = sized(nchw(theirs).pow(2).mean(1, keepdim=True), own)
            losses.append((F.normalize(own.flatten(1)) - F.normalize(theirs.flatten(1))).pow(2).mean())
    return sum(losses) / len(reference["teachers"])


def hints(outputs, batch, reference, hyper):
    (teacher,) = reference["teachers"]
    pairs = [(nchw(outputs[f"hint_{stage}"]), nchw(theirs)) for stage, theirs in teacher["maps"].items()]
    return sum(F.mse_loss(own, sized(theirs, own)) for own, theirs in pairs)


def delta(outputs, batch, reference, hyper):
    theirs = {stage: nchw(m) for stage, m in reference["source"]["maps"].items()}
    own = {stage: nchw(outputs["maps"][stage]) for stage in theirs}
    return regularization.BehavioralRegularization()(theirs, own) / len(batch["label"])


def module(leaves):
    """Something that has these tensors for parameters; they stay the same tensors."""
    made = nn.Module()
    made.named_parameters = lambda: iter(leaves.items())
    made.parameters = lambda: iter(leaves.values())
    return made


def l2(outputs, batch, reference, hyper):
    new = {p: x for p, x in outputs["leaves"].items() if p.endswith("kernel") and p not in reference.get("leaves", {})}
    return regularization.L2Regularization(module(new))()


def l2_sp(outputs, batch, reference, hyper):
    kept = {p: x for p, x in outputs["leaves"].items() if p in reference["leaves"]}
    return regularization.SPRegularization(module(reference["leaves"]), module(kept))()


def self_training(logits, outputs, hyper):
    targets = outputs["weak"]["logits"].detach()
    if hyper["balance"]:
        unaligned = targets
        p = torch.softmax(targets, 1)
        p = p * hyper["prior"] / p.mean(0)
        targets = (p / p.sum(1, keepdim=True)).log()
        assert (targets.argmax(1) != unaligned.argmax(1)).any(), "the case does not show the alignment"
    share = min(1.0, hyper["progress"] / hyper["ramp"]) if hyper["ramp"] else 1.0
    loss, mask, _ = ConfidenceBasedSelfTrainingLoss(hyper["threshold"])(logits, targets)
    assert hyper["threshold"] == 0 or 0 < mask.sum() < len(mask), "the case does not show the threshold"
    return share * loss


def pseudo_label(outputs, batch, reference, hyper):
    return self_training(outputs["weak"]["logits"], outputs, hyper)


def fixmatch(outputs, batch, reference, hyper):
    return self_training(outputs["strong"]["logits"], outputs, hyper)


def mean_teacher(outputs, batch, reference, hyper):
    own, theirs = (torch.softmax(x["logits"], 1) for x in (outputs["weak"], reference["average"]))
    warm = pi_model.sigmoid_warm_up(hyper["progress"], hyper["ramp"])
    return warm * pi_model.L2ConsistencyLoss()(own, theirs) / own.shape[1]


def cases():
    """Yields a reference and an objective's four arguments, as nested dicts and lists of arrays."""
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
        reference = {"teachers": [{"logits": draw(size, classes, scale=4.0)} for _ in range(teachers)]}
        yield distillation, {"logits": draw(size, classes, scale=4.0)}, {}, reference, {"temperature": temperature}
        outputs = {"logits": draw(size, 2), "source": draw(size, classes, scale=3.0)}
        reference = {"source": {"logits": draw(size, classes, scale=3.0)}}
        yield lwf, outputs, {}, reference, {"temperature": temperature}
    # Stages of the student, and of each teacher: of the same size, smaller, larger, and not square.
    student = {"stage1": (4, 6, 3), "stage2": (2, 3, 5), "stage3": (1, 1, 4)}
    for size, teachers in (
        (1, [{"stage1": (4, 6, 3), "stage2": (2, 3, 5)}]),
        (3, [{"stage1": (7, 5, 2), "stage2": (2, 2, 4)}, {"stage2": (5, 7, 3)}]),
        (2, [{"stage2": (2, 3, 2)}, {"stage1": (3, 4, 3)}, {"stage1": (4, 6, 1), "stage2": (3, 2, 1)}]),
    ):
        reference = {"teachers": [{"maps": maps(size, t)} for t in teachers]}
        yield attention_transfer, {"maps": maps(size, student)}, {}, reference, {}
    for size, teacher in ((1, {"stage1": (4, 6, 2)}), (3, {"stage1": (7, 5, 2), "stage2": (3, 2, 4)})):
        outputs = {f"hint_{s}": draw(size, *student[s][:2], shape[2]) for s, shape in teacher.items()}
        reference = {"teachers": [{"maps": maps(size, teacher)}]}
        yield hints, {"maps": maps(size, student)} | outputs, {}, reference, {}
    for size in (1, 3):
        kept = {stage: student[stage] for stage in ("stage1", "stage3")[:size]}
        batch = {"label": np.zeros(size, int)}
        yield delta, {"maps": maps(size, student)}, batch, {"source": {"maps": maps(size, kept)}}, {}
    shapes = {
        "stem/conv/kernel": (3, 3, 2, 4),
        "stem/bn/scale": (4,),
        "head/dense/kernel": (4, 5),
        "head/dense/bias": (5,),
    }
    for kept in (("stem/conv/kernel", "stem/bn/scale"), tuple(shapes), ("stem/conv/kernel", "stage1/conv/kernel")):
        leaves = {path: draw(*shape) for path, shape in shapes.items()}
        source = {path: draw(*shapes.get(path, (1, 1, 4, 4))) for path in kept}
        for function in (l2, l2_sp):
            yield function, {"leaves": leaves}, {}, {"leaves": source}, {}
    yield l2, {"leaves": leaves}, {}, {}, {}
    for size, classes, balance, threshold, progress, ramp in (
        (1, 3, 0.0, 0.0, 0.25, 0.0),
        (8, 4, 0.0, 0.75, 0.25, 0.5),
        (12, 6, 1.0, 0.75, 0.75, 0.5),
    ):
        prior = rng.dirichlet(np.full(classes, 3.0))
        numbers = {"balance": balance, "threshold": threshold, "progress": progress, "ramp": ramp, "prior": prior}
        weak, strong, average = ({"logits": draw(size, classes, scale=3.0)} for _ in range(3))
        weak["logits"][:, 0] += 2 * balance  # A student that prefers one class.
        yield pseudo_label, {"weak": weak}, {}, {}, numbers
        yield fixmatch, {"weak": weak, "strong": strong}, {}, {}, numbers
        yield mean_teacher, {"weak": weak}, {}, {"average": average}, numbers


def flat(tree, prefix=""):
    """Nested dicts and lists as one dict, with dots between keys."""
    if not isinstance(tree, dict | list):
        return {prefix[:-1]: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: leaf for name, node in items for key, leaf in flat(node, f"{prefix}{name}.").items()}


def tensors(tree):
    """Arrays as tensors; plain numbers stay."""
    if isinstance(tree, np.ndarray):
        return torch.from_numpy(tree.copy())
    if isinstance(tree, dict):
        return {name: tensors(node) for name, node in tree.items()}
    return [tensors(node) for node in tree] if isinstance(tree, list) else tree


def main():
    torch.set_default_dtype(torch.float64)
    keras.config.set_floatx("float64")
    arrays, count = {}, {}
    for function, outputs, batch, reference, hyper in cases():
        name = function.__name__
        case = f"{name}-{count.setdefault(name, 0)}"
        count[name] += 1
        arguments = {"outputs": outputs, "batch": batch, "reference": reference, "hyper": hyper}
        given = tensors(arguments)
        leaves = {key: leaf.requires_grad_() for key, leaf in flat(given["outputs"]).items()}
        # What a loss does not look at has gradient zero; so has everything, where it looks at nothing.
        value = function(*given.values()) + torch.zeros((), requires_grad=True)
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        answers = {"value": value.item(), "grads": dict(zip(leaves, (g.numpy() for g in grads), strict=True))}
        arrays |= {f"{case}:{key}": np.asarray(leaf) for key, leaf in flat(arguments | answers).items()}
    np.savez_compressed(HERE / "objectives.npz", **arrays)
    print(count, os.path.getsize(HERE / "objectives.npz"), "bytes")


if __name__ == "__main__":
    main()
