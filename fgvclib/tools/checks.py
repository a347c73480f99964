"""Automatic checks of the course's exercises: each says what is wrong with an answer and how to think about it.

A check compares an answer with the library's, and where they differ, with what the typical mistakes would give. It
returns a `Verdict`, which a notebook shows as the last value of a cell, and never raises because of an answer.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fgvclib.model.affnet import AttentionPreprocessor
from fgvclib.model.geometry import attention_to_box, box_area, box_iou, box_to_theta, centre_box, crop
from fgvclib.model.gradients import scale_gradient
from fgvclib.study.gradient_parts import gradients_of

MARGIN = 0.10  # by which a teacher's BoxAcc@0.5 must beat the given one's: four of forty photos, not one by luck
WHOLE_IMAGE_TOLERANCE = 0.03  # difference in mean IoU up to which a run's crops count as the whole image


@dataclass(frozen=True)
class Verdict:
    """Result of a check; a notebook shows it as text, and `course.grade` reads it."""

    exercise: int
    passed: bool
    message: str

    def __str__(self) -> str:
        state = "✓ Exercise {}: right." if self.passed else "✗ Exercise {}: not yet."
        return f"{state.format(self.exercise)} {self.message}"

    def _repr_mimebundle_(self, **_) -> dict[str, Any]:
        head, _, message = str(self).partition(". ")
        return {
            "text/plain": str(self),
            "text/markdown": f"**{head}.** {message}",
            "application/vnd.fgvc.verdict+json": asdict(self),
        }


class NotYet(Exception):
    """An answer is wrong; the message says why and how to think about it."""


def check(number: int, praise: str) -> Callable:
    """Make a function that raises NotYet into a check of exercise `number`; it may return words of its own."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*answers) -> Verdict:
            try:
                return Verdict(number, True, function(*answers) or praise)
            except NotYet as reason:
                return Verdict(number, False, str(reason))
            except Exception as error:  # an answer that nobody thought of
                return Verdict(
                    number,
                    False,
                    f"The check could not read your answer ({type(error).__name__}: {error}). Print its type, and its "
                    "shape if it has one, and compare them with what the exercise asks for.",
                )

        return run

    return decorate


def _call(function: Callable, *arguments) -> Any:
    """What a student's function answers. Raises NotYet where it is blank or stops with an error."""
    name = _name(function)
    try:
        answer = function(*arguments)
    except Exception as error:  # whatever a student's code may raise is a wrong answer, not an error of the check
        raise NotYet(
            f"`{name}` stopped with {type(error).__name__}: {error}. Call it yourself on one small input and print "
            "the shape of every intermediate value; the first one that surprises you is the place to look."
        ) from error
    if answer is None or answer is ...:
        raise NotYet(f"`{name}` returned nothing. Fill in the blank below the hint, and end with `return`.")
    return answer


def _name(function: Callable) -> str:
    """Also of a callable object, such as a module or a partial function, which has no name of its own."""
    return getattr(function, "__name__", type(function).__name__)


def _number(value: Any, name: str) -> float:
    """Raises NotYet where `value` is blank or no number."""
    if value is None or value is ...:
        raise NotYet(f"{name} is still blank. Fill in the blank below the hint.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"{name} is {value!r}; a number is needed.") from None


def _numbers(function: Callable, arguments: Sequence, shape: Sequence[int]) -> Tensor:
    """The function's answer as a tensor of that shape. Raises NotYet where it is none, or not finite."""
    return _as_numbers(_call(function, *arguments), _name(function), shape)


def _as_numbers(answer: Any, name: str, shape: Sequence[int]) -> Tensor:
    try:
        values = answer if isinstance(answer, Tensor) else torch.as_tensor(answer, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(
            f"`{name}` returned {type(answer).__name__}; numbers of shape {tuple(shape)} are needed."
        ) from None
    if values.shape != torch.Size(shape):
        raise NotYet(
            f"`{name}` returned the shape {tuple(values.shape)}, but {tuple(shape)} is needed. Say for each dimension "
            "of your result what it counts (photos, rows, columns, coordinates): one is missing or left over."
        )
    if not values.isfinite().all():
        raise NotYet(f"`{name}` returned NaN or infinity. Look for a division by zero or a logarithm of zero.")
    return values.to(torch.get_default_dtype())


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, atol=1e-4)


def _compare(answer: Tensor, expected: Tensor, mistakes: Mapping[str, Tensor], example: str) -> None:
    """Raises NotYet with the mistake that explains a wrong answer, or else with `example` and both values."""
    if _same(answer, expected):
        return
    for message, value in mistakes.items():
        if value.shape == answer.shape and _same(answer, value):
            raise NotYet(message)
    raise NotYet(f"{example}: you get {_listed(answer)}, but it should be {_listed(expected)}.")


def _listed(values: Tensor) -> str:
    """Up to eight numbers, readable."""
    flat = values.detach().flatten()
    return f"[{', '.join(f'{value:.3g}' for value in flat[:8].tolist())}{', …' if len(flat) > 8 else ''}]"


# Notebook E1: from a map to a box

_BOXES = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.6, 0.4], [0.5, 0.25, 1.0, 0.5]])


@check(1, "And there and back is the identity, which is worth testing whenever you write a conversion.")
def box_and_theta(to_theta: Callable, to_box: Callable) -> None:
    """to_theta: box (4,) xyxy in [0, 1] → theta (4,) = [s_x, s_y, t_x, t_y]; to_box the other way."""
    for box in _BOXES[1:]:
        low, high = box[:2], box[2:]
        expected, answer = box_to_theta(box), _numbers(to_theta, [box.clone()], [4])
        scale, translation, centre = expected[:2], expected[2:], (low + high) / 2
        where = f"The box {_listed(box)}"
        if _same(answer, expected[[0, 2, 1, 3]]):
            raise NotYet("The numbers are right, their order is not: equation 6 says [s_x, s_y, t_x, t_y].")
        mistakes = {
            "Your scale is half of what it should be. Does a scale of 1 give the whole image? Put in the box [0, 0, "
            "1, 1]: both scales must be 1.": scale / 2,
            "Your scale is twice what it should be. The image is 2 wide in theta's coordinates, but so is the crop: "
            "in s = width of the box / width of the image, the twos cancel.": scale * 2,
            "You used the box's far corner as its scale. The scale is a size: x2 - x1.": high,
        }
        _compare(answer[:2], scale, mistakes, f"{where}, scales")
        mistakes = {
            "Your scale is right. Your translation is the centre in [0, 1], where 0 is the image's left edge. In "
            "theta's coordinates 0 is its middle and the edges are -1 and 1: first stretch, then shift.": centre,
            "Your scale is right. Your translation starts at the middle, as it should, but is only half as long: "
            "from the middle to the edge it is 1, not 0.5.": centre - 0.5,
            "Your scale is right. Your translation has the wrong sign: a box on the right needs t_x > 0, because the "
            "crop reads the image at x_in = s_x x_out + t_x.": -translation,
            "Your scale is right. Your translation is the corner. theta speaks of the centre of the box: the crop's "
            "x_out = 0, its middle, is read at x_in = t_x.": low,
        }
        _compare(answer[2:], translation, mistakes, f"{where}, translations")
        answer = _numbers(to_box, [expected.clone()], [4])
        scale, translation = expected[:2], expected[2:]
        mistakes = {
            "`to_theta` is right. `to_box` gives the edges in [-1, 1], as t ± s; they still have to be moved to [0, "
            "1].":
                torch.cat([translation - scale, translation + scale]),
            "`to_theta` is right. `to_box` gives centre and size; it should give the two corners.":
                torch.cat([centre, high - low]),
        }  # fmt: skip
        _compare(answer, box, mistakes, f"`to_theta` is right. `to_box` of {_listed(expected)}")


def _map(n: int, cells: Mapping[tuple[int, int], float], background: float = 0.0) -> Tensor:
    """A map (n, n) with values at (row, column)."""
    values = torch.full((n, n), background)
    for (row, column), value in cells.items():
        values[row, column] = value
    return values


@check(2, "One stray cell ≥ tau in a corner stretches the box across the image: exercise 9 meets it again.")
def hull(function: Callable) -> None:
    """Map (n, n), tau → smallest box (4,) that holds all cells >= tau after min-max, at cell edges."""
    n, tau = 8, 0.3
    blob = _map(n, {(2, 1): 1.0, (2, 2): 0.6, (3, 1): 0.5, (3, 3): 0.4})
    box = attention_to_box(blob[None, None], tau)[0]
    width, height = box[2] - box[0], box[3] - box[1]
    mistakes = {
        "x and y are swapped. The first index of a map is the row, which is y; the second is the column, which is x.":
            box[[1, 0, 3, 2]],
        "Your right and lower edges are one cell short. Cell j covers the stretch from j/n to (j + 1)/n: a box that "
        "holds it ends at (j + 1)/n.": box - torch.tensor([0, 0, 1 / n, 1 / n]),
        "Your box ends at the centres of its outer cells, so half of each is cut off. Cell j covers j/n to (j + 1)/n.":
            box + torch.tensor([0.5, 0.5, -0.5, -0.5]) / n,
        "Your box is in cells. Boxes in this course are fractions of the image: divide by n.": box * n,
        "Your last index is the last cell, and is divided by n - 1. There are n cells, each 1/n wide, not n - 1 gaps.":
            (box * n - torch.tensor([0, 0, 1, 1])) / (n - 1),
        "You return corner and size; two corners are needed: x1, y1, x2, y2.":
            torch.stack([box[0], box[1], width, height]),
    }  # fmt: skip
    _compare(
        _numbers(function, [blob.clone(), tau], [4]), box, mistakes, "A map with cells in rows 2-3 and columns 1-3"
    )
    for scale, shift in ((5.0, -3.0), (0.01, 0.0)):
        if not _same(_numbers(function, [scale * blob + shift, tau], [4]), box):
            raise NotYet(
                f"Right for a map in [0, 1], but the same map times {scale:g} plus {shift:g} gives another box. "
                "Attention maps have any range: min-max normalise first, (A - min) / (max - min)."
            )
    edge = _map(n, {(2, 1): 1.0, (5, 6): 0.5})
    if not _same(_numbers(function, [edge.clone(), 0.5], [4]), attention_to_box(edge[None, None], 0.5)[0]):
        raise NotYet(
            "With two separate cells, one exactly at tau, your box is wrong. ALL cells ≥ tau count: not only those "
            "above it, and not only the largest connected part."
        )
    if not _same(_numbers(function, [torch.full((n, n), 0.7), tau], [4]), torch.tensor([0.0, 0.0, 1.0, 1.0])):
        raise NotYet(
            "A constant map, in which nothing stands out, must give the whole image [0, 0, 1, 1]. Its max - min is "
            "0: what does your division make of that?"
        )


@check(3, "Your mask has a gradient towards every map cell above the threshold, and towards the threshold itself.")
def soft_mask(function: Callable) -> None:
    """Map (n, n), w_tau, k → mask (n, n) in [0.5, 1] with gradient to both."""
    attention = torch.linspace(-2, 3, 16).view(4, 4).requires_grad_()
    w_tau, k = torch.tensor(0.3, requires_grad=True), 10.0
    module = AttentionPreprocessor(0.3, k)
    expected = module(attention[None, None])[0, 0].detach()
    normalised = ((attention - attention.min()) / (attention.max() - attention.min())).detach()
    above = torch.relu(normalised - 0.3)
    mask = _numbers(function, [attention, w_tau, k], [4, 4])
    mistakes = {
        "This is a hard threshold. It is constant on both sides of its step, so its slope is zero: nothing can be "
        "learnt through it. Make the step smooth with a sigmoid.": (normalised >= 0.3).float(),
        "You left out the ReLU, so the cells below the threshold differ from each other. After the ReLU they are all "
        "0, and sigmoid(0) = 0.5 for all.": torch.sigmoid(k * (normalised - 0.3)),
        "You left out the min-max normalisation: w_tau = 0.3 is meant as 30 % of the way from the map's smallest to "
        "its largest value.": torch.sigmoid(k * torch.relu(attention.detach() - 0.3)),
        "You multiply by k after the sigmoid. k makes the step steep, so it belongs inside: sigmoid(k · …).":
            k * torch.sigmoid(above),
        "k multiplies the map before the threshold is subtracted, so that the threshold is in effect w_tau / k. "
        "First subtract and cut off, then multiply.": torch.sigmoid(torch.relu(k * normalised - 0.3)),
        "k has no effect. It is the factor in front of ReLU(…) inside the sigmoid.": torch.sigmoid(above),
        "You stretched the grey background from 0.5 to 0. It looks tidier, but the paper's module leaves it at "
        "sigmoid(0) = 0.5.": 2 * torch.sigmoid(k * above) - 1,
    }  # fmt: skip
    _compare(mask.detach(), expected, mistakes, "The map -2 … 3 in 16 equal steps")
    for name, leaf in {"the map A": attention, "w_tau": w_tau}.items():
        found = None
        if mask.requires_grad:
            (found,) = torch.autograd.grad(mask.sum(), leaf, retain_graph=True, allow_unused=True)
        if found is None or not found.abs().sum() > 0:
            raise NotYet(
                f"The values are right, but no gradient reaches {name}. `.detach()`, `.item()`, `float(…)` and numpy "
                "all cut the graph: use torch functions from the beginning to the end."
            )


@check(4, "Two vectors of n numbers hold all that the hull needs; the networks that read them are small for it.")
def two_axes(axis_maxima: Callable, twin: Callable, parameters: Callable) -> None:
    """axis_maxima: mask (n, n) → columns (n,), rows (n,); twin: mask → another with the same maxima; parameters."""
    mask = _map(6, {(1, 2): 0.9, (2, 2): 1.0, (2, 3): 0.8, (3, 4): 0.7}, background=0.5)
    answer = _call(axis_maxima, mask.clone())
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise NotYet("`axis_maxima` must return two vectors: `return columns, rows`.")
    for part, dim, name in zip(answer, (0, 1), ("columns", "rows"), strict=True):
        other = mask.amax(dim=1 - dim)
        mistakes = {
            f"`{name}` holds the maxima of the other axis. `amax(dim=0)` lets the dimension 0, the row index, "
            "disappear: what is left is one number for each column.": other,
            f"`{name}` holds sums. A sum grows with the number of cells; the box asks only whether there is one.":
                mask.sum(dim=dim),
            f"`{name}` holds means. One strong cell among many weak ones vanishes in a mean, but it belongs in the "
            "box.":
                mask.mean(dim=dim),
        }  # fmt: skip
        _compare(_as_numbers(part, name, [6]), mask.amax(dim=dim), mistakes, f"`{name}` of the example")
    binary = _map(6, {(1, 1): 1, (1, 2): 1, (1, 3): 1, (2, 1): 1, (2, 2): 1, (2, 3): 1})
    other = _numbers(twin, [binary.clone()], [6, 6])
    if not ((other == 0) | (other == 1)).all():
        raise NotYet(f"`twin` returned a mask with {_listed(other[(other != 0) & (other != 1)])}; zeros and ones only.")
    if _same(other, binary):
        raise NotYet("`twin` returned the same mask. Change at least one cell that no maximum depends on.")
    for dim, name in ((0, "column"), (1, "row")):
        changed = (other.amax(dim=dim) != binary.amax(dim=dim)).nonzero().flatten().tolist()
        if changed:
            raise NotYet(
                f"Your twin has another maximum in {name} {changed[0]}, so AffNet sees the difference. A cell may go "
                "out only while its row AND its column keep another cell that is 1."
            )
    for n, hidden in ((14, 128), (5, 3)):
        _check_parameters(_numbers(parameters, [n, hidden], [2]), n, hidden)


def _check_parameters(answer: Tensor, n: int, hidden: int) -> None:
    axis = (n * hidden + hidden) + 2 * hidden + (hidden * 2 + 2)
    joint = (n * n * hidden + hidden) + 2 * hidden + (hidden * 4 + 4)
    mistakes = {
        "Your first number is one axis network; AffNet has two, one for each axis.": torch.tensor([axis, joint]),
        "You left out the biases: Linear(a→b) has a·b weights and b biases.":
            torch.tensor([2 * (n * hidden + 2 * hidden + 2 * hidden), n * n * hidden + 2 * hidden + 4 * hidden]),
        "You left out the BatchNorm: it has a scale and a shift for each of the hidden values.":
            torch.tensor([2 * (axis - 2 * hidden), joint - 2 * hidden]),
        "The undivided network must answer all four numbers of theta: its last layer is Linear(hidden→4).":
            torch.tensor([2 * axis, joint - 2 * hidden - 2]),
    }  # fmt: skip
    mistakes = {message: value.float() for message, value in mistakes.items()}
    _compare(answer, torch.tensor([2.0 * axis, joint]), mistakes, f"n = {n}, hidden = {hidden}")


# Notebook E2: gradients and losses


@check(5, "Forward nothing happens, backward everything is multiplied: that is all there is to equation 3's beta.")
def gradient_scaling(function: Callable) -> None:
    """x, beta → x, with beta times its gradient."""
    for beta in (0.25, 0.0, 2.0):
        x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
        y = _numbers(function, [x, beta], [3])
        mistakes = {
            f"For beta = {beta:g} the forward value is beta · x. Then the rest of the network gets another map, not "
            "only another gradient. Add a detached part that brings the value back to x.": beta * x.detach(),
        }
        _compare(y.detach(), x.detach(), mistakes, f"Forward, x = [1, -2, 3], beta = {beta:g}")
        got = torch.zeros(3)
        if y.requires_grad:
            (found,) = torch.autograd.grad((y * torch.tensor([1.0, 10.0, 100.0])).sum(), x, allow_unused=True)
            got = torch.zeros(3) if found is None else found
        expected = beta * torch.tensor([1.0, 10.0, 100.0])
        mistakes = {
            f"Forward is right, but with beta = {beta:g} no gradient comes back at all. `x.detach()` alone cuts "
            "everything; one part of x must stay attached.": torch.zeros(3),
            f"Forward is right, but with beta = {beta:g} the gradient comes back unchanged: beta has no effect. Which "
            "part of x should be attached, and by which factor?": torch.tensor([1.0, 10.0, 100.0]),
            f"With beta = {beta:g} the gradient is scaled by 1 - beta: the attached and the detached part are swapped.":
                (1 - beta) * torch.tensor([1.0, 10.0, 100.0]),
        }  # fmt: skip
        _compare(got, expected, mistakes, f"Backward with beta = {beta:g}, where the rest sends [1, 10, 100]")


def toy_gradients(beta_att: float, beta_aff: float) -> dict[str, dict[str, Tensor]]:
    """A system of a few numbers, differentiated by autograd.

    A (3,) → theta = tanh(W A) (2,) → classification loss; L_att of A and L_aff of theta beside it. Returns, by the name
    of the loss ("classification", "attention", "affine", and "total" of all three), {"A": (3,), "theta": (2,)} under
    these betas.
    """
    generator = torch.Generator().manual_seed(1)
    W, v = torch.randn(2, 3, generator=generator), torch.randn(2, generator=generator)
    A = torch.tensor([0.3, -0.6, 0.9], requires_grad=True)
    theta = torch.tanh(W @ scale_gradient(A, beta_att))
    losses = {
        "classification": (v * scale_gradient(theta, beta_aff)).sum().exp(),
        "attention": 16 * F.smooth_l1_loss(A, torch.zeros(3)),
        "affine": 16 * F.smooth_l1_loss(theta, torch.tensor([0.5, -0.2])),
    }
    losses["total"] = sum(losses.values())
    return {name: gradients_of(loss, {"A": A, "theta": theta}) for name, loss in losses.items()}


@check(6, "Your sums agree with what autograd computes in a small system, for every row of Table 2.")
def total_gradients(into_A: Callable, into_theta: Callable) -> None:
    """into_A: parts, beta_att, beta_aff → dL/dA; into_theta: parts, beta_aff → dL/dtheta (equations 3-10)."""
    parts = {name: part for name, part in toy_gradients(1.0, 1.0).items() if name != "total"}
    classification, attention, affine = (parts[name] for name in ("classification", "attention", "affine"))
    for beta_att, beta_aff in ((1.0, 1.0), (0.0, 1.0), (0.5, 0.25), (0.0, 0.0)):
        expected = toy_gradients(beta_att, beta_aff)["total"]
        betas = f"beta_att = {beta_att:g}, beta_aff = {beta_aff:g}"
        mistakes = {
            "beta_aff scales your L_aff as well. For theta, L_aff is the local loss (equation 9); beta_aff scales "
            "what comes from the rest of the network, L_2.": beta_aff * (classification["theta"] + affine["theta"]),
            "beta_aff has no effect in your dL/dtheta. It scales the classification part.":
                classification["theta"] + affine["theta"],
            "L_aff is missing in your dL/dtheta.": beta_aff * classification["theta"],
        }  # fmt: skip
        _compare(_numbers(into_theta, [parts, beta_aff], [2]), expected["theta"], mistakes, f"dL/dtheta for {betas}")
        mistakes = {
            "Your dL/dtheta is right. In dL/dA, beta_att scales your L_att as well. L_att is the local loss of A: it "
            "does not pass through the rest of the network, so beta_att leaves it alone (equation 4).":
                beta_att * (beta_aff * classification["A"] + affine["A"] + attention["A"]),
            "Your dL/dtheta is right. In dL/dA you treat L_aff as local. But it is a loss of theta and reaches A "
            "only through AffNet: for A it belongs to the rest, L_1 of equation 5, and beta_att scales it.":
                beta_att * beta_aff * classification["A"] + affine["A"] + attention["A"],
            "Your dL/dtheta is right. In dL/dA the classification part lacks beta_aff: on its way to A it passes "
            "theta first, where it has already been scaled.":
                beta_att * (classification["A"] + affine["A"]) + attention["A"],
            "Your dL/dtheta is right. In dL/dA, beta_aff scales L_aff. It scales only what enters theta from behind; "
            "L_aff starts at theta itself.":
                beta_att * beta_aff * (classification["A"] + affine["A"]) + attention["A"],
            "Your dL/dtheta is right. L_aff is missing in your dL/dA: it reaches A through AffNet (equation 5).":
                beta_att * beta_aff * classification["A"] + attention["A"],
        }  # fmt: skip
        answer = _numbers(into_A, [parts, beta_att, beta_aff], [3])
        _compare(answer, expected["A"], mistakes, f"Your dL/dtheta is right. dL/dA for {betas}")


@check(7, "The +1 makes a class with few samples move carefully: with one sample, only half as far as with many.")
def centre_update(function: Callable) -> None:
    """centres (K, d), features (B, d) of length 1, labels (B,), alpha → moved centres (K, d)."""
    generator = torch.Generator().manual_seed(2)
    centres = F.normalize(torch.randn(4, 3, generator=generator), dim=1)
    features = F.normalize(torch.randn(5, 3, generator=generator), dim=1)
    labels, alpha = torch.tensor([0, 0, 0, 2, 1]), 0.5
    variants = {
        "": lambda c, f: F.normalize(c - alpha * (c - f).sum(0) / (len(f) + 1), dim=0),
        "You divide by N_k. The formula has N_k + 1 below the fraction bar: one phantom sample that holds the centre "
        "back.": lambda c, f: F.normalize(c - alpha * (c - f).sum(0) / len(f), dim=0),
        "You did not normalise the moved centres. A step along a straight line leaves the unit sphere: divide every "
        "moved centre by its length.": lambda c, f: c - alpha * (c - f).sum(0) / (len(f) + 1),
        "Your centres move away from their features. c - f points from the feature to the centre; subtracting it "
        "moves the centre towards the feature.":
            lambda c, f: F.normalize(c + alpha * (c - f).sum(0) / (len(f) + 1), dim=0),
        "alpha has no effect: your centres take the full step. Multiply the step by it.":
            lambda c, f: F.normalize(c - (c - f).sum(0) / (len(f) + 1), dim=0),
        "You move the centre for the sum of the differences and do not divide it by N_k + 1.":
            lambda c, f: F.normalize(c - alpha * (c - f).sum(0), dim=0),
    }  # fmt: skip
    moved = {}
    for message, move in variants.items():
        moved[message] = centres.clone()
        for label in labels.unique().tolist():
            moved[message][label] = move(centres[label], features[labels == label])
    expected = moved.pop("")
    given = centres.clone()
    answer = _numbers(function, [given, features, labels, alpha], [4, 3])
    if not _same(answer[3], centres[3]):
        raise NotYet(
            "Class 3 has no sample in this batch, but its centre changed. Only the classes of the batch move; with "
            "the mean over no features comes 0/0, or a pull towards zero."
        )
    _compare(answer, expected, moved, "The first centre and part of the second")
    if not _same(given, centres):
        raise NotYet(
            "The result is right, but your function also changed the centres it was given. Work on `.clone()`."
        )


# Notebook E4: the crop, and a system that trains


@check(11, "Two library calls, and the gradient of every loss on the crop reaches theta: that is the whole trick.")
def write_the_crop(function: Callable) -> None:
    """crop(images (B, C, H, W), theta (B, 4), size) → (B, C, size, size), bilinear, differentiable in theta."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(8.0), indexing="ij")
    images = torch.stack([10 * rows + columns, rows * columns])[:, None]  # (2, 1, 12, 8): not square
    theta = torch.tensor([[0.5, 0.25, 0.3, -0.4], [0.25, 0.75, -0.5, 0.1]], requires_grad=True)
    expected = crop(images, theta, 6).detach()
    answer = _numbers(function, [images, theta, 6], [2, 1, 6, 6])
    s, t = theta.detach()[:, :2], theta.detach()[:, 2:]
    mistakes = {
        "x and y are swapped: the first row of the 2x3 matrix makes x, from s_x and t_x.":
            crop(images, torch.cat([s.flip(1), t.flip(1)], dim=1), 6),
        "Your translation has the wrong sign: x_in = s_x x_out + t_x.": crop(images, torch.cat([s, -t], dim=1), 6),
        "You scale by 1/s: theta says where the crop reads, so a small s is a small part of the image, enlarged.":
            crop(images, torch.cat([1 / s, t], dim=1), 6),
        "Your grid has `align_corners=True`: then -1 and 1 are the centres of the outer pixels, and the crop is half a "
        "pixel off. Here they are the image's edges: `align_corners=False`, in both calls.": _aligned(images, theta, 6),
        "You take the nearest pixel. It has no slope, so theta could not learn: `mode=\"bilinear\"`.":
            _nearest(images, theta, 6),
    }  # fmt: skip
    _compare(answer.detach(), expected, mistakes, "Two images of 12 rows and 8 columns, cut to 6x6")
    found = None
    if answer.requires_grad:
        (found,) = torch.autograd.grad(answer.square().sum(), theta, allow_unused=True)
    if found is None or not (found.abs() > 0).all():
        raise NotYet(
            "The values are right, but no gradient reaches all four numbers of theta. Build the matrix with "
            "`torch.stack` from theta's columns: `torch.tensor([...])`, `.item()` and `.detach()` cut the graph."
        )


def _grid(images: Tensor, theta: Tensor, size: int, align: bool) -> Tensor:
    matrix = theta.new_zeros(len(theta), 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = theta[:, 0], theta[:, 1], theta[:, 2:]
    return F.affine_grid(matrix, [len(images), images.shape[1], size, size], align_corners=align)


def _aligned(images: Tensor, theta: Tensor, size: int) -> Tensor:
    return F.grid_sample(images, _grid(images, theta.detach(), size, True), align_corners=True)


def _nearest(images: Tensor, theta: Tensor, size: int) -> Tensor:
    return F.grid_sample(images, _grid(images, theta.detach(), size, False), mode="nearest", align_corners=False)


OVERFITTED = 0.3  # of the loss at the start: what is left after the steps of exercise 12


@check(12, "")
def overfits(function: Callable) -> str:
    """train(model, images, labels, targets, steps) → all losses; model and batch are those of `toy_batch`."""
    model, images, labels, targets = toy_batch()
    steps = 150
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    distance = _distance(model, images, targets)
    losses = _call(function, model, images, labels, targets, steps)
    try:
        losses = [float(loss) for loss in losses]
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("`train` must return the list of its losses, one number for each step.") from None
    if len(losses) != steps:
        raise NotYet(f"`train` returned {len(losses)} losses for {steps} steps: append one in every step.")
    if not all(loss == loss and abs(loss) != float("inf") for loss in losses):
        raise NotYet("Your loss became NaN or infinite. Is `optimiser.zero_grad()` in the loop? Is the rate too high?")
    unmoved = [name for name, value in model.named_parameters() if torch.equal(before[name], value.detach())]
    if len(unmoved) == len(before):
        raise NotYet(
            "No parameter has moved. A step is: zero_grad, forward, loss, `loss.backward()`, `optimiser.step()`. Which "
            "of them is missing?"
        )
    if unmoved:
        part = unmoved[0].split(".")[0]
        raise NotYet(
            f"`{part}` has not moved. Give the optimiser all of `model.parameters()`, and let both losses, the "
            "classifier's and the boxes', reach the total."
        )
    if losses[-1] > OVERFITTED * losses[0]:
        raise NotYet(
            f"The loss only went from {losses[0]:.2f} to {losses[-1]:.2f}. Does each step start with "
            "`optimiser.zero_grad()`? Without it the gradients of all steps so far add up."
        )
    if (left := _distance(model, images, targets)) > distance / 2:
        raise NotYet(
            f"The loss falls, but the boxes stay away from the squares: smooth L1 between theta and the teacher's went "
            f"from {distance:.3f} to {left:.3f}. Is it part of the loss that you call `backward()` on?"
        )
    return f"The loss went from {losses[0]:.2f} to {losses[-1]:.3f}. A system that cannot overfit one batch is broken."


def _distance(model: torch.nn.Module, images: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(F.smooth_l1_loss(model(images)[1], targets))


class ToySystem(torch.nn.Module):
    """Images (B, 1, 16, 16) → logits (B, 2) and theta (B, 4): a localiser and a classifier of one layer each."""

    def __init__(self):
        super().__init__()
        self.localiser, self.classifier = torch.nn.Linear(256, 4), torch.nn.Linear(64, 2)
        torch.nn.init.zeros_(self.localiser.weight)
        self.localiser.bias = torch.nn.Parameter(torch.tensor([0.9, 0.9, 0.0, 0.0]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.localiser(images.flatten(1))
        return self.classifier(crop(images, theta, 8).flatten(1)), theta


def toy_batch() -> tuple[ToySystem, Tensor, Tensor, Tensor]:
    """A fresh `ToySystem`, 8 images (8, 1, 16, 16), labels (8,), and the theta (8, 4) that a teacher gives them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        images, labels = 0.1 * torch.randn(8, 1, 16, 16), torch.arange(8) % 2
        boxes = torch.zeros(8, 4)
        for i in range(8):
            x, y = 1 + i, 9 - i
            images[i, 0, y : y + 5, x : x + 5] += 1.0
            images[i, 0, y + 2, x + 1 + 2 * int(labels[i])] -= 2.0  # the mark: left or right
            boxes[i] = torch.tensor([x, y, x + 5, y + 5]) / 16
        return ToySystem(), 0.5 * images, labels, box_to_theta(boxes)


@check(13, "The loud voice is not always the one you expect: measure before you name a culprit.")
def loudest(function: Callable) -> None:
    """culprit(losses, A): name → loss, and the map A that they depend on → name of the loss that moves A most."""
    for scales in ((1.0, 0.5, 9.0), (9.0, 1.0, 0.1), (1.0, 80.0, 0.2)):
        A = torch.linspace(-1, 1, 9).requires_grad_()
        senders = {
            "classification": scales[0] * (5 + (A * 0.1).sum()),
            "attention": scales[1] * (A - 0.5).square().mean(),
            "affine": scales[2] * (torch.tanh(3 * A) * torch.linspace(1, -1, 9)).sum().square() / 50,
        }
        # Before the answer, which may use the graphs up.
        norms = {n: float(torch.autograd.grad(loss, A, retain_graph=True)[0].norm()) for n, loss in senders.items()}
        answer = _call(function, {**senders}, A)
        if not isinstance(answer, str) or answer not in senders:
            raise NotYet(f"`culprit` returned {answer!r}; the name of a loss is needed: {', '.join(senders)}.")
        if answer == max(norms, key=norms.__getitem__):
            continue
        if answer == max(senders, key=lambda name: float(senders[name].detach())):
            raise NotYet(
                "You named the largest loss. A large value may be flat: what moves A is its gradient, "
                "`torch.autograd.grad(loss, A, retain_graph=True)`."
            )
        listed = ", ".join(f"{name} {norm:.2f}" for name, norm in norms.items())
        raise NotYet(
            f"You say {answer!r}, but the norms of the gradients into A are {listed}. Take the norm over all cells: in "
            "a sum, signs cancel."
        )


@check(
    14, "None of the three raises an error, and the loss falls with all of them: only a test of each part finds them."
)
def bug_hunt(brightest: Callable, teacher_loss: Callable, predict: Callable) -> None:
    """Three mended functions of the notebook.

    brightest: map (n, n) → x, y of its largest cell's middle, in [0, 1]; teacher_loss: attnet, teacher, images → scalar
    that teaches attnet alone; predict: network, images → its output, whatever else is in the batch.
    """
    centre = _numbers(brightest, [_map(8, {(1, 6): 1.0})], [2])
    if _same(centre, torch.tensor([1.5, 6.5]) / 8):
        raise NotYet("A bird in row 1 and column 6 is found at x = 1.5/8: x and y are still swapped.")
    _compare(centre, torch.tensor([6.5, 1.5]) / 8, {}, "`brightest` of a map with its only cell in row 1, column 6")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attnet, teacher = (torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(2))
        images = torch.randn(4, 1, 8, 8)
    _expect_pupil_alone(teacher_loss, attnet, teacher, images)
    network = torch.nn.Sequential(attnet, torch.nn.BatchNorm2d(1)).train()
    before = network[1].running_mean.clone()
    alone, together = _call(predict, network, images[:1]), _call(predict, network, images)[:1]
    if not _same(before, network[1].running_mean) or not _same(alone, together):
        raise NotYet(
            "The answer for a photo depends on the photos beside it, or `predict` changes the running statistics: "
            "BatchNorm is in training mode while it predicts. Which call switches a module to evaluation?"
        )


def _expect_pupil_alone(teacher_loss: Callable, attnet: torch.nn.Module, teacher: torch.nn.Module, images: Tensor):
    """Raises NotYet where the loss is not the mean squared distance of the maps, or teaches anyone but attnet."""
    loss = _numbers(teacher_loss, [attnet, teacher, images], [])
    _compare(loss.detach(), (attnet(images) - teacher(images)).square().mean().detach(), {}, "`teacher_loss`")
    if loss.requires_grad:
        loss.backward()
    heard = {name: any(w.grad is not None for w in net.parameters()) for name, net in (("a", attnet), ("t", teacher))}
    if heard["t"]:
        raise NotYet(
            "The teacher still gets a gradient: it is pulled towards its pupil, and the loss falls although nobody "
            "learns where the bird is. Compute its map without gradient."
        )
    if not heard["a"]:
        raise NotYet("Now AttNet gets no gradient either. Detach the teacher's map, not the pupil's.")


# Notebook E3: on runs and photos


@check(8, "Accuracy alone would not have told you: compare the boxes with what the whole image would score.")
def stuck_runs(function: Callable, scores: pd.DataFrame) -> str | None:
    """scores (rows: runs; columns row, seed, accuracy, mean_iou, box_acc_0.5, …) → names of runs that crop nothing."""
    answer = _call(function, scores.copy())
    try:
        given = set(answer)
    except TypeError:
        raise NotYet(f"`{_name(function)}` returned {type(answer).__name__}; a list of run names is needed.") from None
    unknown = sorted(map(str, given - set(scores.index)))
    if unknown:
        raise NotYet(
            f"{unknown[0]} is not a run of the table. Return entries of `scores.index`, such as {scores.index[0]}."
        )
    iou = scores["mean_iou"]
    whole = iou[scores["row"] == "Baseline"].mean()
    expected = set(scores.index[(iou - whole).abs() < WHOLE_IMAGE_TOLERANCE])
    built = set(scores.index[scores["row"] == "Baseline"])  # never crops, by construction: named or not
    missed, wrong = sorted(expected - given - built), sorted(given - expected)
    if given == set(scores.nsmallest(len(given), "accuracy").index) and (missed or wrong):
        raise NotYet(
            "These are the runs with the lowest accuracy. But a classifier can be good on whole images, and bad on "
            "good crops. The question is about the boxes: look at mean_iou."
        )
    if wrong:
        raise NotYet(
            f"{wrong[0]} does crop: its mean IoU is {iou[wrong[0]]:.2f}, while a crop that is always the whole image "
            f"scores {whole:.2f} (that is what the Baseline does). Compare every run with that number."
        )
    if missed:
        raise NotYet(
            f"You missed {len(missed)}, for instance {missed[0]}: its mean IoU, {iou[missed[0]]:.3f}, is within "
            f"{WHOLE_IMAGE_TOLERANCE} of what the whole image scores, {whole:.3f}. The Baseline does not crop by "
            "construction; which runs could have cropped, but did not?"
        )
    return None


def kind_of_failure(true: Sequence[float], box: Sequence[float]) -> str:
    """Name of a failure by coverage (share of the bird in the box) and purity (share of the box that is bird).

    Boxes xyxy in [0, 1] → "good" (IoU >= 0.5), "too large", "too small" or "beside" (both shares below one half).
    """
    pair = [torch.tensor([[float(value) for value in corners]]) for corners in (true, box)]
    corners = torch.cat([torch.maximum(pair[0], pair[1])[:, :2], torch.minimum(pair[0], pair[1])[:, 2:]], dim=1)
    coverage, purity = (float(box_area(corners) / box_area(boxes)) for boxes in pair)
    if float(box_iou(*pair)) >= 0.5:
        return "good"
    if coverage < 0.5 and purity < 0.5:
        return "beside"
    return "too large" if purity < coverage else "too small"


_BIRD = [0.4, 0.4, 0.6, 0.6]
_FAILURES = {
    "a box that is the bird's": _BIRD,
    "the whole image": [0.0, 0.0, 1.0, 1.0],
    "a box around the head": [0.4, 0.4, 0.5, 0.5],
    "a box that shares an edge region": [0.5, 0.5, 0.7, 0.7],
    "a box to the upper left that does not touch the bird": [0.05, 0.05, 0.2, 0.2],
    "a box to the left of the bird, of the same height": [0.0, 0.4, 0.2, 0.6],
    "a box with a half more on one side": [0.3, 0.4, 0.6, 0.6],
}


@check(9, "Two numbers, coverage and purity, say more about a failure than one IoU.")
def diagnosis(function: Callable) -> None:
    """diagnose(true, box), both xyxy in [0, 1] → "good", "too large", "too small" or "beside"."""
    for name, box in _FAILURES.items():
        answer, expected = _call(function, [*_BIRD], [*box]), kind_of_failure(_BIRD, box)
        if answer == expected:
            continue
        if answer not in ("good", "too large", "too small", "beside"):
            raise NotYet(
                f'`diagnose` returned {answer!r}; one of "good", "too large", "too small", "beside" is needed.'
            )
        case = f"For the bird {_BIRD} and {name}, {box}, you say {answer!r}"
        if {answer, expected} == {"too large", "too small"}:
            raise NotYet(
                f"{case}: coverage and purity are swapped. Coverage divides by the area of the bird, purity by the "
                "area of the box. A box that is too large covers all of the bird, and is mostly not bird."
            )
        if "touch" in name and expected == "beside":
            raise NotYet(
                f"{case}. They do not overlap, so width and height of the overlap come out negative, and their "
                "product is positive! Cut both off at 0 before you multiply."
            )
        raise NotYet(f"{case}, but it is {expected!r}. Work out coverage, purity and IoU for it by hand.")


def box_acc(maps: Tensor, threshold: float, true: Tensor) -> float:
    """BoxAcc@0.5 of the hulls of maps (N, 1, n, n): share of photos whose box has IoU >= 0.5 with the true one."""
    return float((box_iou(true, attention_to_box(maps, threshold).to(true)) >= 0.5).float().mean())


@check(10, "")
def teacher(function: Callable, features: Tensor, true: Tensor, threshold: float = 0.3) -> str:
    """Features (N, C, h, w) of photos with true boxes (N, 4); `function`: features → maps (N, 1, n, n), tau.

    It must beat, in BoxAcc@0.5, the centre box and by `MARGIN` the mean map at `threshold`.
    """
    answer = _call(function, features.clone())
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise NotYet("`my_teacher` must return two things, the maps and your threshold: `return maps, tau`.")
    maps, tau = answer[0], _number(answer[1], "tau")
    if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[:2] != (len(features), 1):
        shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise NotYet(
            f"The maps are {shape}, but ({len(features)}, 1, rows, columns) is needed: one map for each photo. "
            "`keepdim=True` keeps the dimension over which you average."
        )
    if not maps.isfinite().all():
        raise NotYet("Your maps hold NaN or infinity. Look for a division by zero or a root of a negative number.")
    if not 0 < tau < 1:
        raise NotYet(f"tau is {tau:g}; it is compared with maps between 0 and 1, so it must also lie between them.")
    if len(features) > 1 and _same(maps, maps[:1].expand_as(maps)):
        raise NotYet(
            "Your map is the same for every photo: it does not look at them. A prior for the centre can help, but it "
            "has to be combined with `features`."
        )
    mean = box_acc(features.mean(dim=1, keepdim=True), threshold, true)
    centre = max(
        float((box_iou(true, centre_box(len(true), side).to(true)) >= 0.5).float().mean()) for side in (0.5, 0.7)
    )
    yours, upside_down = box_acc(maps, tau, true), box_acc(-maps, tau, true)
    score = f"BoxAcc@0.5 on {len(true)} photos: yours {yours:.2f}, mean map at τ = {threshold:g} {mean:.2f}, "
    score += f"centre box {centre:.2f}."
    if yours <= centre or yours < mean + MARGIN - 1e-9:
        return _why_not(score, yours, mean, upside_down)
    return f"{score} How far can you get? Then ask whether it is the map that got better, or only τ."


def _why_not(score: str, yours: float, mean: float, upside_down: float) -> str:
    """Raises NotYet for a teacher that is not better."""
    if upside_down > yours:
        reason = "Turned upside down (-maps), yours does better: it is large where the bird is not."
    elif abs(yours - mean) < 1e-9:
        reason = "That is the given teacher's score: what do you do differently from it?"
    else:
        reason = "Draw your maps beside the photos that you miss: is the box too large (raise τ, or suppress single "
        reason += "strong cells) or too small (lower τ, or smooth the map)?"
    raise NotYet(f"{score} It must beat the centre box, and the mean map by {MARGIN:.2f}. {reason}")
