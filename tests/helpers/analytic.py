"""Networks that are exactly right: noise predictors of known data, in closed form."""

import torch


class Gaussian:
    """Data N(mu, s^2) per dimension. z_t is N(alpha mu, alpha^2 s^2 + sigma^2), so the optimal eps
    is -sigma times the score, and the probability-flow ODE keeps (z_t - alpha mu) / std(z_t).
    """

    def __init__(self, schedule, mu=0.5, s=0.4):
        self.schedule, self.mu, self.s = schedule, mu, s
        self.calls = []

    def moments(self, abar):
        return abar**0.5 * self.mu, (abar * self.s**2 + 1 - abar) ** 0.5

    def eps_at(self, z, abar):
        mean, std = self.moments(abar)
        return (1 - abar) ** 0.5 * (z - mean) / std**2

    def eps(self, z_t, t, c=None):
        assert t.shape == (len(z_t),) and t.dtype == torch.int64
        assert (t == t[0]).all()
        self.calls.append(int(t[0]))
        return self.eps_at(z_t, self.schedule.abar(int(t[0])))

    def flow(self, z, start, end):
        """Where the ODE takes z from timestep `start` to timestep `end`, exactly."""
        m0, s0 = self.moments(self.schedule.abar(start))
        m1, s1 = self.moments(self.schedule.abar(end))
        return m1 + s1 * (z - m0) / s0


class Mixture:
    """Three narrow Gaussians in the plane: the optimal eps where x0 is not linear in z."""

    MODES = torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.2, -1.3]], dtype=torch.float64)
    S = 0.15

    def __init__(self, schedule):
        self.schedule = schedule

    def eps(self, z_t, t, c=None):
        abar = self.schedule.abar(int(t[0]))
        variance = abar * self.S**2 + 1 - abar
        away = z_t[:, None] - abar**0.5 * self.MODES  # (B, 3, 2)
        share = torch.softmax(-away.square().sum(-1) / (2 * variance), 1)
        return (1 - abar) ** 0.5 * (share[..., None] * away).sum(1) / variance
