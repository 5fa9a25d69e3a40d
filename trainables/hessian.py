"""Dominant eigenvalues of the loss's Hessian: how sharp the minimum is that a training found."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (N, K), labels (N,) -> mean over the batch
Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), labels (N,)


def dominant_eigenvalues(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Batch],
    k: int,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The `k` eigenvalues of largest modulus, in descending order of modulus; negative ones keep their sign.

    The Hessian is that of the mean loss over all examples of `data`, with respect to the parameters
    that require gradients. Only its products with vectors are computed, by double backward; implicitly
    restarted Lanczos (ARPACK) does the rest on the CPU, in double precision.

    The model stays in the caller's mode. Eval mode is what is meant for a network with BatchNorm: in train
    mode each batch is normalised by itself, so that the loss, and the Hessian with it, depends on how
    `data` is cut into batches. In either mode no buffer, mode or `.grad` changes.

    Args:
        model: Images to logits.
        loss: Logits and labels to the batch's mean loss, e.g. `F.cross_entropy`.
        data: Batches, on the model's device, or a single one; a batch counts by its size. All are kept for the
            duration of the call.
        k: How many, from 1 to as many as there are parameters.
        iterations: Restarts of Lanczos at most; each takes up to max(k + 1, 20 - k) passes over `data`.
        tolerance: Residual |Hv - λv| relative to |λ| of a unit eigenvector v, at which λ has converged;
            λ itself is then more accurate. Below 1e-6 single precision doesn't get there.
        generator: Draws the first vector; None: torch's global one.

    Returns:
        (k,), in the parameters' precision and on their device.

    Raises:
        ValueError: If `k` is out of range or `data` is empty.
        RuntimeError: If fewer than `k` eigenvalues converged, or the Hessian is not finite.

    Source: Lehoucq, Sorensen, Yang 1998, ARPACK Users' Guide; for networks, with power iteration instead,
    Yao et al. 2018, arXiv:1802.08241.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    n = sum(parameter.numel() for parameter in parameters)
    if not 1 <= k <= n:
        raise ValueError(f"k {k} given; accepted: 1 to {n}, as many as there are parameters")
    batches = list(data)
    if batches and isinstance(batches[0], Tensor):
        batches = [(batches[0], batches[1])]
    if not batches:
        raise ValueError("data: no batch given; accepted: at least one")
    device = generator.device if generator is not None else None
    start = torch.randn(n, dtype=torch.float64, generator=generator, device=device).cpu().numpy()

    def product(vector: np.ndarray) -> np.ndarray:
        directions = unflatten(torch.from_numpy(vector.reshape(-1)), parameters)
        return hessian_vector_product(model, loss, batches, parameters, directions).cpu().double().numpy()

    first = product(start)
    if not np.isfinite(first).all():
        raise RuntimeError("the Hessian is not finite; accepted: weights and images with a finite loss")
    if k == n:  # Lanczos finds fewer than all; as many products are the whole matrix
        found = np.linalg.eigvalsh(np.stack([product(axis) for axis in np.eye(n)]))
        return parameters[0].new_tensor(sorted(found, key=abs, reverse=True))
    if not first.any():  # no Hessian but zero maps a random vector to zero, and ARPACK refuses that one
        return parameters[0].new_zeros(k)
    hessian = LinearOperator((n, n), matvec=product, dtype=np.float64)
    try:
        # `rng` draws where the vectors so far span an invariant subspace.
        found = eigsh(
            hessian, k, v0=start, maxiter=iterations, tol=tolerance, return_eigenvectors=False, which="LM", rng=0
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"{len(error.eigenvalues)} of {k} eigenvalues converged in {iterations} iterations to {tolerance}; "
            "accepted: more iterations or a larger tolerance"
        ) from None
    return parameters[0].new_tensor(sorted(found, key=abs, reverse=True))


def hessian_vector_product(
    model: nn.Module, loss: Loss, batches: Sequence[Batch], parameters: Sequence[Tensor], directions: Sequence[Tensor]
) -> Tensor:
    """The Hessian times the vector of which `directions` holds each parameter's part: (n,), detached."""
    n_examples = sum(len(y) for _, y in batches)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    # Copies of the buffers take what a forward pass in train mode writes.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for x, y in batches:
        with torch.enable_grad():
            value = loss(torch.func.functional_call(model, buffers, (x,)), y)
            slopes = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
            # A slope without a graph is constant: its parameter enters the loss linearly, or not at all.
            curved = [
                (slope * part).sum() for slope, part in zip(slopes, directions, strict=True) if slope.requires_grad
            ]
            if not curved:
                continue
            products = torch.autograd.grad(sum(curved), parameters, materialize_grads=True)
        for part, share in zip(total, products, strict=True):
            part += share.detach() * (len(y) / n_examples)
    return torch.cat([part.reshape(-1) for part in total])


def unflatten(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """(n,) to one tensor of each parameter's shape, precision and device."""
    parts = vector.split([parameter.numel() for parameter in parameters])
    return [part.to(parameter).view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
