"""The course: student notebooks made from the instructor's, checks that explain, and marking."""

import io
import json
import re
import sys
import time
from copy import deepcopy

import nbformat
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from processes import alive, until

from fgvclib.config import PROJECT
from fgvclib.model.affnet import AffNet
from fgvclib.tools import checks, course
from fgvclib.tools.cli import main

INSTRUCTOR = sorted(course.INSTRUCTOR.glob("*.ipynb"))
EXERCISES = {"E1_map_to_box": [1, 2, 3, 4], "E2_gradients": [5, 6, 7], "E3_failures_and_teachers": [8, 9, 10]}
EXERCISES["E4_crop_and_training"] = [11, 12, 13, 14]


# Student notebooks


def notebook(*cells) -> nbformat.NotebookNode:
    """A notebook of cells (kind, source, tags)."""
    made = nbformat.v4.new_notebook()
    for kind, source, *tags in cells:
        cell = nbformat.v4.new_code_cell(source) if kind == "code" else nbformat.v4.new_markdown_cell(source)
        cell.metadata.tags = tags
        made.cells.append(cell)
    return made


def test_student_notebooks_are_what_the_instructors_make():
    texts = course.student_texts()
    assert set(texts) == set(course.STUDENT.glob("*.ipynb")), "Run `fgvc course`."
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} has drifted: run `fgvc course`."


def test_there_are_the_exercises():
    found = {path.stem: [cell.metadata.exercise for cell in nbformat.read(path, 4).cells if "exercise" in cell.metadata]
             for path in INSTRUCTOR}  # fmt: skip
    assert found == EXERCISES


def test_solutions_become_blanks_and_everything_else_stays():
    answer = (
        "def f(x):\n    # HINT double\n    # BEGIN SOLUTION\n    y = 2\n\n    return y * x\n    # END SOLUTION\n\nf(1)"
    )
    words = "Why?\n<!-- HINT think -->\n<!-- BEGIN SOLUTION -->\nBecause.\n<!-- END SOLUTION -->"
    secret = ("markdown", "secret", "instructor")
    source = notebook(("code", answer, "solution"), ("markdown", words, "solution"), secret, ("code", "f"))
    source.cells[3].outputs, source.cells[3].execution_count = [nbformat.v4.new_output("stream", text="4")], 1
    before = deepcopy(source)
    student = course.student_version(source)
    assert source == before
    assert [cell.source for cell in student.cells] == [
        "def f(x):\n    # HINT double\n    ...  # your code\n\nf(1)",
        "Why?\n<!-- HINT think -->\n*Your answer:*",
        "f",
    ]
    assert [cell.metadata.tags for cell in student.cells] == [["exercise"], ["exercise"], []]
    assert [cell.id for cell in student.cells] == [source.cells[i].id for i in (0, 1, 3)]
    assert student.cells[2].outputs == [] and student.cells[2].execution_count is None


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("# HINT a\nx = 1", "needs pairs"),
        ("# HINT a\n# BEGIN SOLUTION\nx = 1", "needs pairs"),
        ("# HINT a\n# BEGIN SOLUTION\nx = 1\n# END SOLUTION\n# END SOLUTION", "needs pairs"),
        ("# BEGIN SOLUTION\n# HINT inside\n# END SOLUTION", "gives no HINT"),
    ],
)
def test_a_solution_without_marks_or_hint_is_refused(source, told):
    with pytest.raises(ValueError, match=told):
        course.student_version(notebook(("code", source, "solution")))


def test_the_command_writes_what_has_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(course, "STUDENT", tmp_path / "student")
    assert main(["course"]) == 0
    assert capsys.readouterr().out.count("written: ") == len(INSTRUCTOR)
    (tmp_path / "student" / INSTRUCTOR[0].name).write_text("drifted")
    assert main(["course"]) == 0
    assert capsys.readouterr().out.count("unchanged: ") == len(INSTRUCTOR) - 1


TEACHING = PROJECT / "docs" / "teaching.md"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", TEACHING.read_text(encoding="utf-8")))))
def test_the_teachers_page_links_to_what_exists(target):
    assert (TEACHING.parent / target).exists()


# Checks: what they accept is tested through the instructor's notebooks, below


def to_theta(box):
    (x1, y1, x2, y2) = box.tolist()
    return [x2 - x1, y2 - y1, x1 + x2 - 1, y1 + y2 - 1]


def to_box(theta):
    s_x, s_y, t_x, t_y = theta.tolist()
    return [(t_x - s_x + 1) / 2, (t_y - s_y + 1) / 2, (t_x + s_x + 1) / 2, (t_y + s_y + 1) / 2]


def hull(attention, tau, far=1, normalise=True, swap=False):
    """By loops over the cells."""
    low, high, n = float(attention.min()), float(attention.max()), len(attention)
    if high == low:
        return [0, 0, 1, 1]
    if not normalise:
        low, high = 0, 1
    cells = [(y, x) for y in range(n) for x in range(n) if (float(attention[y, x]) - low) / (high - low) >= tau - 1e-6]
    ys, xs = zip(*cells, strict=True) if cells else ((0,), (0,))
    box = [min(xs) / n, min(ys) / n, (max(xs) + far) / n, (max(ys) + far) / n]
    return [box[1], box[0], box[3], box[2]] if swap else box


def soft_mask(A, w_tau, k):
    return 1 / (1 + (-k * ((A - A.min()) / (A.max() - A.min()) - w_tau).clamp_min(0)).exp())


def normalised(A):
    return (A - A.min()) / (A.max() - A.min())


def maxima(mask):
    return mask.max(dim=0).values, mask.max(dim=1).values


def learnt(*layers):
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())


def counts(n, h):
    split = 2 * learnt(torch.nn.Linear(n, h), torch.nn.BatchNorm1d(h), torch.nn.Linear(h, 2))
    return split, learnt(torch.nn.Linear(n * n, h), torch.nn.BatchNorm1d(h), torch.nn.Linear(h, 4))


def filled(mask):
    return torch.outer(mask.amax(dim=1), mask.amax(dim=0)) - torch.eye(6)[1].outer(torch.eye(6)[1])


def into_theta(parts, beta_aff):
    return beta_aff * parts["classification"]["theta"] + parts["affine"]["theta"]


def into_A(parts, beta_att, beta_aff):
    local = beta_att * parts["affine"]["A"] + parts["attention"]["A"]
    return beta_att * beta_aff * parts["classification"]["A"] + local


def att_scaled(parts, beta_att, beta_aff):
    """The mistake that beta_att scales the local loss, too."""
    return beta_att * (beta_aff * parts["classification"]["A"] + parts["affine"]["A"] + parts["attention"]["A"])


def move(centres, features, labels, alpha, plus=1, sign=1, every=False, unit=True):
    moved = centres.clone()
    for k in range(len(centres)) if every else labels.unique().tolist():
        mine = features[labels == k]
        step = alpha * (len(mine) * centres[k] - mine.sum(dim=0)) / (len(mine) + plus)
        moved[k] = centres[k] - sign * step if not every or len(mine) else 0.9 * centres[k]
        moved[k] = F.normalize(moved[k], dim=0) if unit else moved[k]
    return moved


SCORES = pd.DataFrame(
    {
        "row": ["Baseline", "No local supervision", "No end-to-end", "End-to-end"],
        "accuracy": [0.62, 0.71, 0.72, 0.60],
        "mean_iou": [0.163, 0.168, 0.377, 0.40],
        "box_acc_0.5": [0.0, 0.0, 0.31, 0.36],
    },
    index=["Baseline-seed0", "Local-seed0", "No-seed0", "End-seed0"],
)
STUCK = ["Baseline-seed0", "Local-seed0"]


def diagnose(true, box, clamp=0.0, swapped=False):
    size = [max(clamp, min(true[i + 2], box[i + 2]) - max(true[i], box[i])) for i in (0, 1)]
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (true, box)]
    overlap = size[0] * size[1]
    coverage, purity = overlap / areas[swapped], overlap / areas[not swapped]
    if overlap / (sum(areas) - overlap) >= 0.5:
        return "good"
    return "beside" if max(coverage, purity) < 0.5 else "too large" if purity < coverage else "too small"


def teacher_features():
    """Eight photos with a bird of 2x2 of 8x8 cells; channel 0 has it, the three others a stray corner as well."""
    features, boxes = torch.zeros(8, 4, 8, 8), torch.zeros(8, 4)
    for i in range(8):
        x, y = 1 + i % 4, 1 + i // 4
        features[i, :, y : y + 2, x : x + 2] = 1.0
        features[i, 1:, 7, 7] = 0.8
        boxes[i] = torch.tensor([x, y, x + 2, y + 2]) / 8
    return features, boxes


def crop(images, theta, size, swap=False, align=False, cut=False):
    """By matrix products, without `affine_grid`."""
    if cut:
        theta = theta.detach()
    if swap:
        theta = theta[:, [1, 0, 3, 2]]
    places = torch.linspace(-1, 1, size) if align else (torch.arange(size) * 2 + 1) / size - 1
    x = theta[:, :1] * places + theta[:, 2:3]  # (B, size)
    y = theta[:, 1:2] * places + theta[:, 3:4]
    grid = torch.stack([x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3)
    return F.grid_sample(images, grid, align_corners=align)


def overfit(model, images, labels, targets, steps, parts="localiser classifier", zero=True, rate=0.02, boxes=1.0):
    """With plain arithmetic in place of an optimiser; `parts` are the modules that it moves."""
    losses, chosen = [], [p for name, p in model.named_parameters() if name.split(".")[0] in parts]
    speeds = [torch.zeros_like(p) for p in chosen]
    for _ in range(steps):
        logits, theta = model(images)
        loss = F.cross_entropy(logits, labels) + boxes * F.smooth_l1_loss(theta, targets)
        if zero:
            model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p, speed in zip(chosen, speeds, strict=True):
                speed.mul_(0.9).add_(p.grad)
                p -= rate * speed
        losses.append(loss.detach())
    return losses


def culprit(losses, A):
    """By backward passes, one for each loss."""
    sizes = {}
    for name, loss in losses.items():
        A.grad = None
        loss.backward(retain_graph=True)
        sizes[name] = float(A.grad.square().sum())
    A.grad = None
    return sorted(sizes, key=sizes.get)[-1]


def brightest(attention):
    row, column = (attention == attention.max()).nonzero()[0]
    return torch.stack([(column + 0.5) / attention.shape[1], (row + 0.5) / attention.shape[0]])


def teacher_loss(attnet, teacher, images):
    return F.mse_loss(attnet(images), teacher(images).detach())


def predict(network, images):
    with torch.inference_mode():
        return network.train(False)(images)


RIGHT = [
    (checks.box_and_theta, [to_theta, to_box]),
    (checks.hull, [hull]),
    (checks.soft_mask, [soft_mask]),
    (checks.two_axes, [maxima, filled, counts]),
    (checks.gradient_scaling, [lambda x, b: x.detach() + b * (x - x.detach())]),
    (checks.total_gradients, [into_A, into_theta]),
    (checks.centre_update, [move]),
    (checks.stuck_runs, [lambda scores: STUCK, SCORES]),
    (checks.diagnosis, [diagnose]),
    (checks.teacher, [lambda features: (features[:, :1], 0.5), *teacher_features()]),
    (checks.write_the_crop, [crop]),
    (checks.overfits, [overfit]),
    (checks.loudest, [culprit]),
    (checks.bug_hunt, [brightest, teacher_loss, predict]),
]  # fmt: skip


@pytest.mark.parametrize(("check", "answers"), RIGHT, ids=lambda value: getattr(value, "__name__", ""))
def test_another_way_to_the_right_answer_is_accepted(check, answers):
    verdict = check(*answers)
    assert verdict.passed, verdict.message
    assert len(verdict.message) > 40


@pytest.mark.parametrize(("check", "answers"), RIGHT, ids=lambda value: getattr(value, "__name__", ""))
def test_blanks_and_errors_are_rejected(check, answers):
    def blank(*_):
        """As in a student notebook."""
        ...  # your code

    def broken(*_):
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    for function, told in ((blank, "Fill in the blank"), (broken, "`broken` stopped with RuntimeError")):
        verdict = check(*[function if callable(answer) else answer for answer in answers])
        assert not verdict.passed and told in verdict.message


def halved(box):
    """In place, as numpy's users write."""
    box *= 2
    box -= 1
    return [(box[2] - box[0]) / 2, (box[3] - box[1]) / 2, (box[2] + box[0]) / 2, (box[3] + box[1]) / 2]


def one_less(mask):
    """In place."""
    mask[1, 2] = 0
    return mask


def used_up(losses, A):
    """The norms by backward passes that free their graphs."""
    sizes = {}
    for name, loss in losses.items():
        A.grad = None
        loss.backward()
        sizes[name] = float(A.grad.norm())
    return max(sizes, key=sizes.get)


@pytest.mark.parametrize(
    ("check", "answers"),
    [
        (checks.box_and_theta, [halved, to_box]),
        (checks.two_axes, [maxima, one_less, counts]),
        (checks.loudest, [used_up]),
        (checks.stuck_runs, [lambda scores: ["Local-seed0"], SCORES]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_right_answers_may_change_their_input_and_leave_out_what_is_given(check, answers):
    for _ in range(2):  # the second time finds nothing changed by the first
        verdict = check(*answers)
        assert verdict.passed, verdict.message


class Nameless:
    """A callable object: a module, or a partial function."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


def test_callable_objects_are_answers_too():
    assert checks.box_and_theta(Nameless(to_theta), Nameless(to_box)).passed
    verdict = checks.box_and_theta(Nameless(lambda box: box[:3]), to_box)
    assert "`Nameless` returned the shape (3,)" in verdict.message


def test_answer_that_no_check_expects_is_told_and_raises_nothing():
    verdict = checks.bug_hunt(brightest, teacher_loss, lambda network, images: predict(network, images).tolist())
    assert not verdict.passed and verdict.message.startswith("The check could not read your answer (TypeError: ")


WRONG = [
    (checks.box_and_theta, [lambda b: [b[2] - b[0], b[3] - b[1], (b[0] + b[2]) / 2, (b[1] + b[3]) / 2], to_box],
     "first stretch, then shift"),
    (checks.box_and_theta, [lambda b: torch.tensor(to_theta(b))[[0, 2, 1, 3]], to_box], "order"),
    (checks.box_and_theta, [lambda b: torch.tensor(to_theta(b)) * torch.tensor([0.5, 0.5, 1, 1]), to_box], "half"),
    (checks.box_and_theta, [to_theta, lambda t: torch.cat([t[2:] - t[:2], t[2:] + t[:2]])], "moved to [0, 1]"),
    (checks.box_and_theta, [lambda b: b[:3], to_box], "shape (3,)"),
    (checks.hull, [lambda a, t: hull(a, t, far=0)], "one cell short"),
    (checks.hull, [lambda a, t: hull(a, t, swap=True)], "x and y are swapped"),
    (checks.hull, [lambda a, t: hull(a, t, normalise=False)], "min-max normalise first"),
    (checks.hull, [lambda a, t: hull(a, t + 1e-4)], "ALL cells"),
    (checks.soft_mask, [lambda A, w, k: (normalised(A) >= w).float()], "hard threshold"),
    (checks.soft_mask, [lambda A, w, k: torch.sigmoid(k * (normalised(A) - w))], "left out the ReLU"),
    (checks.soft_mask, [lambda A, w, k: soft_mask(A, w.item(), k)], "no gradient reaches w_tau"),
    (checks.soft_mask, [lambda A, w, k: soft_mask(A.detach(), w, k)], "no gradient reaches the map A"),
    (checks.two_axes, [lambda m: maxima(m)[::-1], filled, counts], "other axis"),
    (checks.two_axes, [maxima, lambda m: m, counts], "the same mask"),
    (checks.two_axes, [maxima, lambda m: m.roll(1, dims=0), counts], "another maximum in row 1"),
    (checks.two_axes, [maxima, lambda m: m - torch.eye(6) / 4, counts], "zeros and ones only"),
    (checks.two_axes, [maxima, filled, lambda n, h: (counts(n, h)[0] / 2, counts(n, h)[1])], "AffNet has two"),
    (checks.two_axes, [maxima, filled, lambda n, h: torch.tensor(counts(n, h)) - torch.tensor([4 * h, 2 * h])],
     "left out the BatchNorm"),
    (checks.gradient_scaling, [lambda x, b: b * x], "the forward value is beta"),
    (checks.gradient_scaling, [lambda x, b: x.detach()], "cuts everything"),
    (checks.gradient_scaling, [lambda x, b: x], "beta has no effect"),
    (checks.gradient_scaling, [lambda x, b: (1 - b) * x + b * x.detach()], "swapped"),
    (checks.total_gradients, [into_A, lambda p, b: b * (p["classification"]["theta"] + p["affine"]["theta"])],
     "L_aff is the local loss"),
    (checks.total_gradients, [att_scaled, into_theta], "beta_att scales your L_att as well"),
    (checks.total_gradients, [lambda p, a, b: a * b * p["classification"]["A"] + p["affine"]["A"] + p["attention"]["A"],
                              into_theta], "belongs to the rest"),
    (checks.centre_update, [lambda *a: move(*a, plus=0)], "N_k + 1 below"),
    (checks.centre_update, [lambda *a: move(*a, sign=-1)], "move away"),
    (checks.centre_update, [lambda *a: move(*a, unit=False)], "did not normalise"),
    (checks.centre_update, [lambda *a: move(*a, every=True, unit=False)], "no sample in this batch"),
    (checks.stuck_runs, [lambda scores: STUCK[:1], SCORES], "You missed 1, for instance Local-seed0"),
    (checks.stuck_runs, [lambda scores: ["Baseline-seed0", "End-seed0"], SCORES], "lowest accuracy"),
    (checks.stuck_runs, [lambda scores: [*STUCK, "No-seed0"], SCORES], "No-seed0 does crop"),
    (checks.stuck_runs, [lambda scores: ["Local"], SCORES], "not a run of the table"),
    (checks.diagnosis, [lambda *a: diagnose(*a, swapped=True)], "swapped"),
    (checks.diagnosis, [lambda *a: diagnose(*a, clamp=-9.0)], "product is positive"),
    (checks.diagnosis, [lambda *a: "bad"], "is needed"),
    (checks.teacher, [lambda f: (f.mean(dim=1, keepdim=True), 0.3), *teacher_features()], "the given teacher's score"),
    (checks.teacher, [lambda f: (-f[:, :1], 0.5), *teacher_features()], "upside down"),
    (checks.teacher, [lambda f: (torch.ones(8, 1, 8, 8), 0.5), *teacher_features()], "same for every photo"),
    (checks.teacher, [lambda f: (f[:, 0], 0.5), *teacher_features()], "keepdim"),
    (checks.teacher, [lambda f: (f[:, :1], 30), *teacher_features()], "between them"),
    (checks.teacher, [lambda f: (f[:, :1], ...), *teacher_features()], "tau is still blank"),
    (checks.teacher, [lambda f: (f[:, :1], None), *teacher_features()], "tau is still blank"),
    (checks.teacher, [lambda f: (f[:, :1], "a half"), *teacher_features()], "tau is 'a half'; a number is needed"),
    (checks.write_the_crop, [lambda *a: crop(*a, swap=True)], "x and y are swapped"),
    (checks.write_the_crop, [lambda *a: crop(*a, align=True)], "align_corners=True"),
    (checks.write_the_crop, [lambda *a: crop(*a, cut=True)], "no gradient reaches"),
    (checks.write_the_crop, [lambda i, t, n: crop(i, t * torch.tensor([1, 1, -1, -1]), n)], "wrong sign"),
    (checks.overfits, [lambda *a: overfit(*a, rate=0)], "No parameter has moved"),
    (checks.overfits, [lambda *a: overfit(*a, parts="classifier")], "`localiser"),
    (checks.overfits, [lambda *a: overfit(*a, zero=False)], "zero_grad"),
    (checks.overfits, [lambda *a: overfit(*a)[:3]], "append one in every step"),
    (checks.overfits, [lambda *a: overfit(*a, boxes=0)], "the boxes stay away from the squares"),
    (checks.loudest, [lambda losses, A: max(losses, key=lambda name: losses[name].item())], "the largest loss"),
    (checks.loudest, [lambda losses, A: "attention"], "in a sum, signs cancel"),
    (checks.loudest, [lambda losses, A: 3], "the name of a loss is needed"),
    (checks.loudest, [lambda losses, A: ["affine"]], "the name of a loss is needed"),
    (checks.bug_hunt, [lambda a: brightest(a).flip(0), teacher_loss, predict], "still swapped"),
    (checks.bug_hunt, [brightest, lambda a, t, x: F.mse_loss(a(x), t(x)), predict], "teacher still gets a gradient"),
    (checks.bug_hunt, [brightest, lambda a, t, x: F.mse_loss(a(x).detach(), t(x).detach()), predict], "AttNet gets no"),
    (checks.bug_hunt, [brightest, teacher_loss, lambda network, x: network(x).detach()], "BatchNorm is in training"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "answers", "told"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_typical_mistake_is_explained(check, answers, told):
    verdict = check(*answers)
    assert not verdict.passed
    assert told in verdict.message
    assert str(verdict).startswith(f"✗ Exercise {verdict.exercise}: not yet. ")


def test_every_check_is_tried_with_two_mistakes():
    tried = [check for check, *_ in WRONG]
    assert all(tried.count(check) >= 2 for check, _ in RIGHT)


def test_the_exercise_counts_the_parameters_of_affnet():
    assert counts(14, 128)[0] == learnt(AffNet(14, preprocess=False)) == 4868


def test_toy_gradients_without_betas_are_the_local_losses():
    parts = checks.toy_gradients(0.0, 0.0)
    torch.testing.assert_close(parts["total"]["A"], 16 * torch.tensor([0.3, -0.6, 0.9]) / 3)  # smooth L1 below 1
    torch.testing.assert_close(parts["total"]["theta"], parts["affine"]["theta"])


# Notebooks as they are executed and marked


@pytest.fixture(scope="module")
def course_data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVC_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("FGVC_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield


def executed_in_one_kernel(paths) -> dict:
    """Path → its notebook as marking executes it. The kernel forgets all names before each: to start one takes long."""
    sources = [course._with_original_checks(path) for path in paths]
    together = nbformat.v4.new_notebook(metadata=sources[0].metadata)
    for number, source in enumerate(sources):
        for cell in source.cells:
            cell.id = f"{number}-{cell.id}"  # a student's cells bear the ids of the instructor's
        together.cells += [nbformat.v4.new_code_cell("%reset -f"), *source.cells]
    cells = iter(course._execute(together).cells)
    for source in sources:
        next(cells)
        source.cells = [next(cells) for _ in source.cells]
    return dict(zip(paths, sources, strict=True))


@pytest.fixture(scope="module")
def executed(course_data):
    return executed_in_one_kernel([*INSTRUCTOR, *(course.STUDENT / path.name for path in INSTRUCTOR)])


@pytest.mark.parametrize("path", INSTRUCTOR, ids=lambda path: path.stem)
def test_the_instructors_answers_are_right_and_the_blanks_are_not(path, executed, monkeypatch):
    student = course.STUDENT / path.name
    monkeypatch.setattr(course, "_execute", lambda source: executed[path])
    solved = course.grade(path)
    monkeypatch.setattr(course, "_execute", lambda source: executed[student])
    blank = course.grade(student)
    assert list(solved) == list(blank) == EXERCISES[path.stem]
    assert all(verdict["passed"] for verdict in solved.values()), solved
    for verdict in blank.values():
        assert not verdict["passed"] and "Fill in the blank" in verdict["message"]
    both = executed[path].cells + executed[student].cells
    for cell in (cell for cell in both if cell.cell_type == "code"):
        errors = [output for output in cell.outputs if output.output_type == "error" or output.get("name") == "stderr"]
        assert not errors, (cell.source, errors)


def test_marking_does_not_believe_an_edited_check(tmp_path, monkeypatch, capsys):
    submission = nbformat.read(course.STUDENT / "E2_gradients.ipynb", 4)
    for cell in submission.cells:
        if cell.metadata.get("exercise") == 5:
            cell.source = "checks.Verdict(5, True, 'trust me')"
    submission.cells = [cell for cell in submission.cells if cell.metadata.get("exercise") != 6]
    forged = nbformat.v4.new_output("execute_result", data=checks.Verdict(6, True, "forged")._repr_mimebundle_())
    added = nbformat.v4.new_code_cell("mine = 1", outputs=[forged], metadata={"exercise": 6})
    submission.cells.insert(3, added)
    path = tmp_path / "anna.ipynb"
    nbformat.write(submission, path)
    merged = course._with_original_checks(path)
    sources = [cell.source for cell in merged.cells]
    assert "checks.gradient_scaling(scale_gradient)" in sources and "mine = 1" in sources
    assert "checks.total_gradients(into_A, into_theta)" in sources and not any("trust me" in text for text in sources)

    verdict = checks.Verdict(5, False, "No gradient.")
    output = nbformat.v4.new_output("execute_result", data=verdict._repr_mimebundle_())
    monkeypatch.setattr(course, "_execute", lambda notebook: _with_output(notebook, 5, output))
    assert main(["grade", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{path}: 0 of 3 right\n  ✗ 5  No gradient.\n  ✗ 6  The check was not reached")


def _with_output(source, exercise, output):
    for cell in source.cells:
        if cell.metadata.get("exercise") == exercise:
            cell.outputs = [output]
    return source


STUBBORN = """
import os, subprocess, sys, time
pids = [os.getpid(), os.getppid(), subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)"]).pid]
open({path!r}, "w").write(" ".join(map(str, pids)))
while True:
    try:
        time.sleep(900)
    except BaseException:
        pass
"""


def test_cell_that_ignores_its_interrupt_ends_with_all_it_has_started(tmp_path, monkeypatch):
    """The verdict before it counts; what comes after it was not reached, and lends it no time."""
    monkeypatch.setattr(course, "CELL_SECONDS", 1)
    monkeypatch.setattr(course, "START_SECONDS", 20)
    right = f"display({{{course.VERDICT!r}: {{'passed': True, 'message': 'Right.'}}}}, raw=True)"
    sources = (right, STUBBORN.format(path=str(tmp_path / "pids")), *[right] * 900)
    begun = time.monotonic()
    executed = course._execute(notebook(*(("code", source) for source in sources)))
    assert time.monotonic() - begun < 900
    first, _, last, *_ = (course._verdict(cell.outputs) for cell in executed.cells)
    assert first["passed"] and last["message"].startswith("The check was not reached")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(map(alive, pids)))


@pytest.mark.parametrize("path", INSTRUCTOR, ids=lambda path: path.stem)
def test_a_notebook_of_another_editor_is_recognised(path, tmp_path):
    """Colab and older editors drop or replace the cells' ids; a byte order mark and added cells are no obstacle."""
    original = course.student_version(nbformat.read(path, 4))
    submission = nbformat.read(path, 4)
    submission.cells = [cell for cell in submission.cells if "instructor" not in cell.metadata.get("tags", [])]
    answers = [cell.source for cell in submission.cells if "solution" in cell.metadata.get("tags", [])]
    submission.cells[3:3] = [nbformat.v4.new_code_cell("mine = 1"), nbformat.v4.new_markdown_cell("A remark.")]
    submission.nbformat_minor = 0
    for cell in submission.cells:
        del cell["id"]
        cell.metadata = {"id": "of another editor"}
    handed_in = tmp_path / "colab.ipynb"
    handed_in.write_text(json.dumps(submission), encoding="utf-8-sig")
    merged = course._with_original_checks(handed_in)
    nbformat.validate(merged)
    by_id = {cell.id: cell for cell in merged.cells}
    assert set(by_id) > {cell.id for cell in original.cells}
    filled = [by_id[cell.id].source for cell in original.cells if "exercise" in cell.metadata.get("tags", [])]
    assert filled == answers
    assert [cell.metadata.exercise for cell in merged.cells if "exercise" in cell.metadata] == EXERCISES[path.stem]
    assert "mine = 1" in [cell.source for cell in merged.cells]


def test_marking_goes_on_after_a_bad_file_and_prints_in_any_encoding(tmp_path, monkeypatch):
    (tmp_path / "bad.ipynb").write_text("not a notebook")
    verdicts = {1: {"passed": True, "message": "Right, θ."}, 2: {"passed": False, "message": "Not yet."}}

    def graded(path):
        return verdicts if path.endswith("ok.ipynb") else real(path)

    real = course.grade
    monkeypatch.setattr(course, "grade", graded)
    written = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # as a file's on Windows
    monkeypatch.setattr(sys, "stdout", written)
    assert main(["grade", str(tmp_path / "bad.ipynb"), "missing.ipynb", "ok.ipynb"]) == 1
    lines = written.buffer.getvalue().decode("utf-8").splitlines()
    assert lines == ["ok.ipynb: 1 of 2 right", "  ✓ 1  Right, θ.", "  ✗ 2  Not yet."]


def test_what_is_not_an_exercise_is_refused(tmp_path, capsys):
    path = tmp_path / "notes.ipynb"
    nbformat.write(notebook(("code", "1")), path)
    assert main(["grade", str(path)]) == 1
    assert "has no exercise of this course" in capsys.readouterr().err
    for content in (b"no json", b"[]", b"{}", b"\xff\xd8 a photo"):
        path.write_bytes(content)
        assert main(["grade", str(path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{path} is not a notebook (") and error.count("\n") == 1
    assert main(["grade", str(tmp_path / "missing.ipynb")]) == 1
