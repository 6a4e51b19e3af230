"""A linear map fitted to what it should have said, from sums that any number of positions fit in.

    fit = LeastSquares(linear)
    for inputs_NI, wanted_NO in batches:
        fit.add(inputs_NI, wanted_NO)
    repaired = fit.solve()

Legend: N positions, I inputs, O outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What the fit of one map brought, on the positions it was fitted on.

    Attributes:
        name: of the map's weight.
        before: squared error of what the map said, as a share of the target's energy.
        after: the same once fitted; never above `before`.
    """

    name: str
    before: float
    after: float


class LeastSquares:
    """argmin over W of ‖X W − Y‖² + ridge ‖W − W₀‖², W₀ being the map as it is.

    The penalty is towards the map that is there, and not towards nothing: so the fit can only do
    better than it on what it was fitted on, and where positions say nothing all stays as it was.
    Sums are kept in float64.

    Args:
        linear: the map, with or without a bias; changed in place by `solve`.
        ridge: of the penalty, as a share of the inputs' mean square.

    Source: OSSCAR (arXiv 2403.12983) section 3 has the fit towards nothing, for plain MLPs and for
    heads that share no keys; with another map's outputs for targets and this penalty, ours.
    """

    def __init__(self, linear: nn.Linear, *, ridge: float = 1e-6) -> None:
        self.linear = linear
        self.ridge = ridge
        self._device = linear.weight.device
        num_inputs = linear.in_features + (linear.bias is not None)
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        self._gram_II = zero.new_zeros(num_inputs, num_inputs)
        self._cross_IO = zero.new_zeros(num_inputs, linear.out_features)
        self._energy = zero
        self.num_positions = 0

    @torch.no_grad()
    def add(self, inputs_NI: Tensor, wanted_NO: Tensor) -> None:
        """Add positions.

        Args:
            inputs_NI: what the map is given, any float dtype.
            wanted_NO: what it should say.
        """
        inputs = inputs_NI.double()
        if self.linear.bias is not None:
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        wanted = wanted_NO.double()
        self._gram_II += inputs.T @ inputs
        self._cross_IO += inputs.T @ wanted
        self._energy += wanted.square().sum()
        self.num_positions += len(inputs)

    @torch.no_grad()
    def solve(self, name: str) -> Repair:
        """Set the map to the fitted one.

        Args:
            name: of the map, for the record.
        """
        weight = self.linear.weight
        start_IO = weight.double().T
        if self.linear.bias is not None:
            start_IO = torch.cat([start_IO, self.linear.bias.double()[None]])
        penalty = self.ridge * self._gram_II.diagonal().mean().clamp(min=1e-30)
        damped_II = self._gram_II + penalty * torch.eye(len(start_IO), device=self._device)
        missing_IO = self._cross_IO - self._gram_II @ start_IO
        fitted_IO = start_IO + torch.linalg.solve(damped_II, missing_IO)
        repair = Repair(name=name, before=self._error(start_IO), after=self._error(fitted_IO))
        weight.copy_(fitted_IO[: self.linear.in_features].T)
        if self.linear.bias is not None:
            self.linear.bias.copy_(fitted_IO[-1])
        return repair

    def _error(self, map_IO: Tensor) -> float:
        """Squared error of a map as a share of the target's energy."""
        square = self._energy - 2 * (map_IO * self._cross_IO).sum()
        square = square + (map_IO * (self._gram_II @ map_IO)).sum()
        return float(square.clamp(min=0) / self._energy.clamp(min=1e-30))
