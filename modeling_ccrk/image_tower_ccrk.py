"""The image tower: any timm model behind one small adapter, at any resolution it can be interpolated to."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .configuration_ccrk import CCRkVisionConfig
from .draws_ccrk import Draws, DrawsHolder, replace_dropouts


def build_timm_model(config: CCRkVisionConfig) -> nn.Module:
    """Builds the timm model that a configuration names, with no classifier and no pooling.

    Raises:
        ValueError: if timm has no such model or refuses the arguments; the message names both.
    """
    import timm  # heavy: only whoever builds a tower pays for it

    arguments = dict(config.model_args or {})
    try:
        pretrained_config = timm.get_pretrained_cfg(config.architecture)
        if pretrained_config is not None and pretrained_config.fixed_input_size:
            arguments["img_size"] = config.image_size
        return timm.create_model(config.architecture, pretrained=False, num_classes=0, global_pool="", **arguments)
    except (RuntimeError, TypeError, AssertionError, KeyError) as error:
        raise ValueError(
            f"the image tower '{config.architecture}' with arguments {arguments} cannot be built: {error}. "
            "`timm.list_models()` lists the names that are known"
        ) from error


class CCRkImageTower(nn.Module):
    """A timm model as a sequence of tokens: a summary (the mean of the grid) followed by the grid.

    Class and register tokens of the timm model are left out. Batch normalisation keeps its statistics in training,
    so that a batch taken in pieces gives the same result as the whole.
    """

    def __init__(self, config: CCRkVisionConfig):
        super().__init__()
        self.config = config
        self.timm_model = build_timm_model(config)
        self.checkpointing = False
        self.draws_holder = DrawsHolder()
        self._adopt()

    def _adopt(self) -> None:
        """Makes the timm model ours: its dropout can be keyed, and `_init_weights` leaves it as it is."""
        replace_dropouts(self.timm_model, self.draws_holder)
        for module in self.timm_model.modules():
            module._initialised_by_timm = True
        modules = self.timm_model.modules()
        self._windows = [m for m in modules if hasattr(m, "fused_attn") and hasattr(m, "relative_position_bias_table")]

    def _choose_attention(self) -> None:
        """Takes the windows of a Swin through torch's fused attention, which timm leaves off unless told otherwise.

        A fused window is two to three times as fast on a CPU. Not in training: with a bias that learns, torch falls
        back to a slower way than timm's own. Nor with `attn_implementation="eager"`.
        """
        fused = not self.training and getattr(self.config, "_attn_implementation", None) != "eager"
        for window in self._windows:
            if window.fused_attn != fused:
                window.fused_attn = fused

    @property
    def hidden_size(self) -> int:
        """Width of the tokens."""
        return self.timm_model.num_features

    def train(self, mode: bool = True) -> CCRkImageTower:
        """Switches between training and evaluation; batch normalisation stays in evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches activation checkpointing of the timm model.

        Raises:
            ValueError: if this timm model has none.
        """
        try:
            self.timm_model.set_grad_checkpointing(enable)
            self.checkpointing = enable
        except (AttributeError, AssertionError) as error:
            raise ValueError(
                f"the image tower '{self.config.architecture}' does not support activation checkpointing"
            ) from error

    def forward(self, pixel_values: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        """Encodes images.

        Args:
            pixel_values: (B, 3, H, W).
            draws: stochastic depth and dropout by keys, one for each image. They stay in force until the next pass,
                so that activation checkpointing, which computes parts again, repeats them.

        Returns:
            (B, 1 + P, hidden_size): the mean of the grid tokens, then the grid tokens in row-major order.

        Raises:
            ValueError: if the images have another size than the tower was built for.
        """
        size = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}, but this model takes (B, 3, {size}, {size}); "
                "load it with image_size=... for another resolution"
            )
        self.draws_holder.draws = draws
        self._choose_attention()
        channels_first = getattr(self.timm_model, "output_fmt", "NCHW") == "NCHW"
        if channels_first:  # convolutions on a CPU are about 1.6 times as fast with channels last in memory
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        grid = self.timm_model(pixel_values)
        if grid.ndim == 4:
            if channels_first:
                grid = grid.permute(0, 2, 3, 1)
            grid = grid.flatten(1, 2)
        else:
            grid = grid[:, getattr(self.timm_model, "num_prefix_tokens", 0) :]
        return torch.cat([grid.mean(1, keepdim=True), grid], 1)

    @torch.no_grad()
    def resize(self, config: CCRkVisionConfig) -> None:
        """Rebuilds the tower for another input size, keeping its weights.

        Relative position bias tables are interpolated by `interpolate_relative_positions`, absolute position
        embeddings by timm; all other weights are taken as they are.

        Args:
            config: the same architecture at its new size.

        Raises:
            ValueError: if a weight changes its shape in a way that cannot be interpolated.
        """
        from timm.layers import resample_abs_pos_embed

        new = build_timm_model(config)
        old_state = self.timm_model.state_dict()
        state = {}
        for name, target in new.state_dict().items():
            value = old_state[name]
            if value.shape != target.shape:
                if name.endswith("relative_position_bias_table"):
                    value = interpolate_relative_positions(value, target.shape[0])
                elif name.endswith("pos_embed") and value.ndim == 3:
                    prefix = getattr(new, "num_prefix_tokens", 0) if not getattr(new, "no_embed_class", False) else 0
                    value = resample_abs_pos_embed(value, list(new.patch_embed.grid_size), num_prefix_tokens=prefix)
                else:
                    raise ValueError(
                        f"the image tower '{config.architecture}' cannot be taken to {config.image_size} px: "
                        f"'{name}' would change from {tuple(value.shape)} to {tuple(target.shape)}"
                    )
            state[name] = value
        reference = next(self.timm_model.parameters())
        trained = {name: parameter.requires_grad for name, parameter in self.timm_model.named_parameters()}
        new.load_state_dict(state)
        for name, parameter in new.named_parameters():
            parameter.requires_grad_(trained[name])
        self.timm_model = new.to(device=reference.device, dtype=reference.dtype)
        self.config = config
        self._adopt()
        if self.checkpointing:
            self.set_grad_checkpointing()
        self.train(self.training)


def _geometric_positions(source: int, target: int) -> np.ndarray:
    """Places of `source` (odd) offsets that spread geometrically over the half-width of `target` offsets.

    The ratio q is the one with 1 + q + ... + q^(n-1) = target // 2 for n = source // 2, found by bisection between
    1.01 and 1.5 (BEiT's scheme, which Swin and the authors follow).
    """
    half = source // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > target // 2:
            high = ratio
        else:
            low = ratio
    positive = np.cumsum(ratio ** np.arange(half))
    return np.concatenate([-positive[::-1], [0.0], positive])


def cubic_spline_matrix(knots: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The matrix of cubic spline interpolation: values at `knots` (n,) times it are values at `points` (m,).

    The interpolating spline with the "not-a-knot" end condition, which is what the two-dimensional cubic splines of
    FITPACK are along each axis. Points outside the knots take the value at the nearest end. Needs n >= 4.

    Returns:
        (m, n) float64.
    """
    n = len(knots)
    steps = np.diff(knots)
    # Unknowns are the second derivatives at the knots: system @ second = rhs @ values
    system = np.zeros((n, n))
    rhs = np.zeros((n, n))
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = steps[i - 1], 2 * (steps[i - 1] + steps[i]), steps[i]
        rhs[i, i - 1 : i + 2] = 6 / steps[i - 1], -6 / steps[i - 1] - 6 / steps[i], 6 / steps[i]
    # Third derivatives agree across the second and the last but one knot
    system[0, :3] = steps[1], -(steps[0] + steps[1]), steps[0]
    system[-1, -3:] = steps[-1], -(steps[-2] + steps[-1]), steps[-2]
    second = np.linalg.solve(system, rhs)

    points = np.clip(points, knots[0], knots[-1])
    left = np.clip(np.searchsorted(knots, points, side="right") - 1, 0, n - 2)
    width = steps[left]
    a, b = (knots[left + 1] - points) / width, (points - knots[left]) / width
    rows = np.arange(len(points))
    matrix = np.zeros((len(points), n))
    matrix[rows, left] += a
    matrix[rows, left + 1] += b
    bend = (width**2 / 6)[:, None]
    return matrix + bend * ((a**3 - a)[:, None] * second[left] + (b**3 - b)[:, None] * second[left + 1])


def interpolate_relative_positions(table: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Interpolates a relative position bias table to another window.

    Cubic splines along both axes, with the old offsets spread geometrically over the new range. The authors used a
    routine that scipy has since removed; scipy names a two-dimensional spline in its place, to which this is equal.

    Args:
        table: ((2w-1)^2, heads).
        num_positions: (2w'-1)^2 of the new window w'.

    Returns:
        ((2w'-1)^2, heads) in the dtype of `table`.

    Raises:
        ValueError: if one of the two is not the square of an odd number, or the old window is smaller than 3.
    """
    source, target = round(table.shape[0] ** 0.5), round(num_positions**0.5)
    if source**2 != table.shape[0] or target**2 != num_positions or not (source % 2 and target % 2) or source < 5:
        raise ValueError(
            f"a relative position bias table of {table.shape[0]} rows cannot be interpolated to {num_positions}"
        )
    if source == target:
        return table
    offsets = np.arange(target) - target // 2
    matrix = torch.from_numpy(cubic_spline_matrix(_geometric_positions(source, target), offsets))
    grid = table.detach().double().cpu().reshape(source, source, -1)
    result = torch.einsum("ai,bj,ijh->abh", matrix, matrix, grid)
    return result.reshape(num_positions, -1).to(table)
