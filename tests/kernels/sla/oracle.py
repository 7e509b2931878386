"""Sparse Linear Attention and its gradient in numpy, written from the papers' formulas."""

import numpy as np

PHI = {
    "elu1": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "relu": lambda x: np.maximum(x, 0),
}


def _phi_backward(phi, x, g):
    if phi == "relu":
        return g * (x > 0)
    y = PHI[phi](x)
    if phi == "elu1":
        return g * np.minimum(y, 1)
    return y * (g - (g * y).sum(-1, keepdims=True))


def sla_and_gradients(q, k, v, w, softmax_set, linear_set, phi, eps, up, dtype=np.float64):
    """SLA Eq. 2-8.

    q, k, v and the cotangent `up` are [B, T, N, D] with 0 for padding, w is [D, D], the sets are
    [B, N, Tq, Tk] bool. Returns o and the gradients of q, k, v, w. In float32 it shows the errors
    of that precision.
    """
    q, k, v, up = (np.asarray(x, dtype).transpose(0, 2, 1, 3) for x in (q, k, v, up))
    w = np.asarray(w, dtype)
    t = lambda x: np.swapaxes(x, -1, -2)  # noqa: E731
    scale = dtype(q.shape[-1] ** -0.5)

    s = np.where(softmax_set, q @ t(k) * scale, -np.inf)
    top = s.max(-1, keepdims=True)
    p = np.exp(s - np.where(np.isfinite(top), top, 0))
    p /= np.where(softmax_set.any(-1, keepdims=True), p.sum(-1, keepdims=True), 1)
    o_s = p @ v
    ds = p * (up @ t(v) - (up * o_s).sum(-1, keepdims=True))
    dq, dk, dv = ds @ k * scale, t(ds) @ q * scale, t(p) @ up

    fq, fk = PHI[phi](q), PHI[phi](k)
    a = fq @ t(fk) * linear_set
    total = a.sum(-1, keepdims=True)
    total = np.where(total > 0, total + dtype(eps), 1)
    o_l = a @ v / total
    do_l = up @ w.T
    da = (do_l @ t(v) - (do_l * o_l).sum(-1, keepdims=True)) / total * linear_set
    dq += _phi_backward(phi, q, da @ fk)
    dk += _phi_backward(phi, k, t(da) @ fq)
    dv += t(a / total) @ do_l
    dw = np.einsum("bnqd,bnqe->de", o_l, up)

    back = [x.transpose(0, 2, 1, 3) for x in (o_s + o_l @ w, dq, dk, dv)]
    return (*back, dw)
