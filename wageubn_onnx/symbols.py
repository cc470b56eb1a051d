"""The names of the data paths: role of a node -> symbol of the quantizer that stands on it, and what that quantizer is for."""

from __future__ import annotations

SYMBOLS: dict[str, tuple[str, str]] = {
    "I": ("Q_I", "the normalised input image"),
    "W": ("Q_W", "weights, as operands of products"),
    "bias": ("Q_b", "bias of a product without BN"),
    "A": ("Q_A", "activations, after ReLU or an average"),
    "S": ("Q_S", "a residual sum that no ReLU follows"),
    "C": ("Q_C", "a product's output, before BN"),
    "Z": ("Q_Z", "logits"),
    "BN.mu": ("Q_mu", "BN mean"),
    "BN.sigma": ("Q_sigma", "BN standard deviation"),
    "BN.var": ("Q_var", "BN variance, on the grid of sigma's square, where that is found at run time"),
    "BN.epsilon": ("Q_eps", "epsilon, on the same"),
    "BN.x": ("Q_BN", "BN normalised value"),
    "gamma": ("Q_gamma", "BN scale"),
    "beta": ("Q_beta", "BN offset"),
    "BN.ratio": ("Q_ratio", "gamma/sigma, on a fixed grid"),
    "BN.A": ("Q_BA", "gamma/sigma, the factor of the error in BN's backward"),
    "BN.K": ("Q_BK", "gamma/sigma * mean(e*xh), the factor of xh in BN's backward"),
    "BN.B": ("Q_BB", "gamma/sigma * mean(e), the offset in BN's backward"),
    "BN.running_mean.batch": ("Q_rmu", "the batch mean, for the running mean"),
    "BN.running_var.batch": ("Q_rvar", "the batch variance, for the running variance"),
    "BN.running_mean": ("Q_Rmu", "running mean, stored"),
    "BN.running_var": ("Q_Rvar", "running variance, stored"),
    "S.t": ("Q_St", "exponent of the softmax, in units of log 2"),
    "S.p": ("Q_Sp", "probabilities"),
    "loss": ("Q_L", "the loss"),
    "E1": ("Q_E1", "error leaving an activation"),
    "E2": ("Q_E2", "error arriving at a product's output"),
    "E.sum": ("Q_ES", "operands of a sum of errors, on a common exponent"),
    "E.acc": ("Q_ED", "accumulator of a data gradient, where it is too long for int32"),
    "G.W": ("Q_GW", "weight gradient"),
    "G.decay": ("Q_WD", "weight decay, on the gradient's grid"),
    "G.gamma": ("Q_Ggamma", "gradient of the BN scale"),
    "G.beta": ("Q_Gbeta", "gradient of the BN offset"),
    "G.bias": ("Q_Gb", "gradient of a bias"),
    "M.coefficient": ("Q_Mom", "momentum coefficient"),
    "M.W": ("Q_Acc", "momentum accumulator of a weight, stored"),
    "M.gamma": ("Q_Acc_gamma", "momentum accumulator of a BN scale, stored"),
    "M.beta": ("Q_Acc_beta", "momentum accumulator of a BN offset, stored"),
    "M.bias": ("Q_Acc_b", "momentum accumulator of a bias, stored"),
    "lr": ("Q_lr", "learning rate"),
    "U.W": ("Q_UW", "stored weight"),
    "U.gamma": ("Q_Ugamma", "stored BN scale"),
    "U.beta": ("Q_Ubeta", "stored BN offset"),
    "U.bias": ("Q_Ub", "stored bias"),
}


BACKWARD = ("E1", "E2", "E.", "G.", "BN.ratio", "BN.A", "BN.K", "BN.B")
UPDATE = ("M.", "U.", "lr", "random", "health")  # random bits and counters, which have no quantizer, too


def direction(role: str) -> str:
    """Where in the step a data path lies: ``forward``, ``backward`` or ``update``."""
    return "backward" if role.startswith(BACKWARD) else "update" if role.startswith(UPDATE) else "forward"


def symbol(role: str) -> str:
    """The quantizer's symbol for a role."""
    return SYMBOLS[role][0]
