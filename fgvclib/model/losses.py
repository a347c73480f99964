"""The training objective: equations 1-10 of the paper and the embedding loss of [ELoPE]."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from fgvclib.model.geometry import attention_to_box, box_to_theta

SHORTEST = 1e-12  # a vector below this length has no direction


def normalise(vectors: Tensor) -> Tensor:
    """Rows of (B, d) at length 1; a row of zeros, as equal images give behind BatchNorm, stays as it is.

    `torch.nn.functional.normalize` has the same values, but multiplies the gradient of such a row by 1e12.
    """
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / torch.where(length < SHORTEST, 1.0, length)


class EmbeddingLoss(nn.Module):
    """Draws embeddings to the centre of their class and pushes the centres of a batch apart [ELoPE].

    Features and centres are L2-normalised. In training mode every call first moves the centres of the batch's classes,
    c_k ← normalise(c_k - alpha * sum_i (c_k - f_i) / (N_k + 1)), and the gradient counts that they depend on the
    features. Then L_emb = intra + gamma * inter, with

    - intra = mean over the batch of ||f - c_y||^2 / 2,
    - inter = sum over at most `max_pairs` random pairs of the batch's classes of max(0, m - ||c_i - c_j||^2)^2 / 4,
      divided by `max_pairs`. Pairs at least the margin m apart would add nothing and are not drawn.

    Only the classes of the batch are compared, so that the cost does not grow with the number of classes. Where several
    processes train, "the batch" is all of theirs, so that the centres stay equal everywhere.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        alpha: float = 0.5,
        margin: float = 0.75,
        gamma: float = 16.0,
        max_pairs: int = 256,
    ):
        super().__init__()
        self.alpha, self.margin, self.gamma, self.max_pairs = alpha, margin, gamma, max_pairs
        # At zero, so that the first update sets a centre to the mean direction of its first features.
        self.register_buffer("centres", torch.zeros(num_classes, dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (B, dim), labels (B,) in [0, num_classes) → scalar loss >= 0."""
        features, labels = _of_all_processes(normalise(features)), _of_all_processes(labels)
        classes, position = labels.unique(return_inverse=True)
        centres = self._updated_centres(features, classes, position) if self.training else self.centres[classes]
        intra = 0.5 * (features - centres[position]).square().sum(dim=1).mean()  # scalar
        return intra + self.gamma * self._inter(centres)

    def _updated_centres(self, features: Tensor, classes: Tensor, position: Tensor) -> Tensor:
        """Move the stored centres of `classes` (K,) and return them (K, dim), with gradient to the features."""
        old = self.centres[classes]
        counts = torch.bincount(position, minlength=len(classes)).unsqueeze(1)  # (K, 1)
        sums = torch.zeros_like(old).index_add(0, position, features.to(old.dtype))
        new = normalise(old - self.alpha * (counts * old - sums) / (counts + 1))
        self.centres[classes] = _of_first_process(new.detach())
        return new

    def _inter(self, centres: Tensor) -> Tensor:
        first, second = torch.triu_indices(len(centres), len(centres), offset=1, device=centres.device)
        shortfall = self.margin - (centres[first] - centres[second]).square().sum(dim=1)
        shortfall = shortfall[shortfall > 0]
        drawn = torch.randperm(len(shortfall), device=shortfall.device)[: self.max_pairs]
        return shortfall[drawn].square().sum() / 4 / self.max_pairs


def _of_all_processes(rows: Tensor) -> Tensor:
    """Rows (B, ...) of all n processes, (n B, ...). Every process must bring the same B.

    The gradient of a loss that every process computes from all rows alike comes back n times, once from each; the
    parameters' gradients are averaged over processes afterwards.
    """
    return torch.cat(all_gather(rows.contiguous())) if _several_processes() else rows


def _of_first_process(values: Tensor) -> Tensor:
    """The first process's values: sums on a GPU may differ in their last bits, which would add up over an epoch."""
    if _several_processes():
        values = values.contiguous()
        dist.broadcast(values, src=0)
    return values


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized()


def localisation_loss(
    attention: Tensor,
    theta: Tensor,
    teacher_map: Tensor,
    lambda_att: float = 16.0,
    lambda_aff: float = 16.0,
    threshold: float = 0.3,
    component: str = "all",
    upsample: int = 1,
) -> tuple[Tensor, Tensor]:
    """A and M (B, 1, n, n), theta (B, 4) → the local losses L_att (equation 2) and L_aff (equation 7), weighted.

    The target box is that of `attention_to_box` with `threshold`, `component` and `upsample`.
    """
    theta_tau = box_to_theta(attention_to_box(teacher_map, threshold, component, upsample))  # (B, 4), section 2.2.1
    l_att = lambda_att * F.smooth_l1_loss(attention, teacher_map)  # eq. 2
    l_aff = lambda_aff * F.smooth_l1_loss(theta, theta_tau)  # eq. 7
    return l_att, l_aff


class EndToEndLoss(nn.Module):
    """L = L_CE + lambda L_emb + lambda_att SL1(A, M) + lambda_aff SL1(theta, theta_tau) (equations 1, 2 and 7)."""

    def __init__(
        self,
        embedding_loss: EmbeddingLoss,
        lambda_emb: float = 2.0,
        lambda_att: float = 16.0,
        lambda_aff: float = 16.0,
        threshold: float = 0.3,
        component: str = "all",
        upsample: int = 1,
    ):
        super().__init__()
        self.embedding_loss = embedding_loss
        self.lambda_emb, self.lambda_att, self.lambda_aff = lambda_emb, lambda_att, lambda_aff
        self.threshold, self.component, self.upsample = threshold, component, upsample

    @property
    def needs_teacher(self) -> bool:
        """Whether a local loss is on; without one the teacher pass can be saved."""
        return self.lambda_att > 0 or self.lambda_aff > 0

    def forward(self, output, labels: Tensor, teacher_map: Tensor | None = None) -> dict[str, Tensor]:
        """Output of `EndToEndModel`, labels (B,), M (B, 1, n, n) → the weighted terms by name; "total" is their sum.

        Raises ValueError where a loss is on and what it needs is missing: a teacher map, or an embedding.
        """
        terms = {
            "cross_entropy": F.cross_entropy(output.logits, labels),
            "embedding": self._embedding_term(output, labels),
        }
        if self.needs_teacher:
            if teacher_map is None:
                raise ValueError("lambda_att or lambda_aff is above 0, but no teacher map was given.")
            terms |= self.local_terms(output.attention, output.theta, teacher_map)
        terms["total"] = sum(terms.values())  # eq. 1, with the local losses
        return terms

    def _embedding_term(self, output, labels: Tensor) -> Tensor:
        if self.lambda_emb == 0:
            return output.logits.new_zeros(())  # and the centres stay where they are
        if output.embedding is None:
            raise ValueError(
                "lambda_emb is above 0, but this classifier gives logits alone; set lambda_emb = 0, or give it an "
                "embedding as fgvclib's Classifier has."
            )
        return self.lambda_emb * self.embedding_loss(output.embedding, labels)

    def local_terms(self, attention: Tensor, theta: Tensor, teacher_map: Tensor) -> dict[str, Tensor]:
        """A and M (B, 1, n, n), theta (B, 4) → the weighted local losses of equations 2 and 7."""
        l_att, l_aff = localisation_loss(
            attention,
            theta,
            teacher_map,
            self.lambda_att,
            self.lambda_aff,
            self.threshold,
            self.component,
            self.upsample,
        )
        return {"attention": l_att, "affine": l_aff}
