import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from torch.nn import functional

from vidbrain.errors import ConfigError, ModelError
from vidbrain.models.attention import AxialAttention
from vidbrain.models.codec import fold, halvings, unfold
from vidbrain.models.vqvae import VQVAE, VQVAEConfig, principal_components, to_float, to_uint8

SMALL = VQVAEConfig(downsample=(2, 4, 4), patch=(1, 2, 2), n_hidden=8, n_res_layers=1, n_codes=16, code_dim=4)


def video(batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (batch, 4, 16, 8, 3), dtype=np.uint8))


def test_fold_keeps_blocks_together_and_unfold_undoes_it():
    x = torch.randn(2, 3, 4, 8, 6)
    folded = fold(x, (2, 4, 2))
    assert folded.shape == (2, 48, 2, 2, 3)
    torch.testing.assert_close(folded[:, :, 1, 0, 2], x[:, :, 2:4, 0:4, 4:6].flatten(1))
    torch.testing.assert_close(unfold(folded, (2, 4, 2)), x)


def test_pixels_survive_the_round_trip():
    v = video()
    pixels = to_float(v)
    assert pixels.min() >= -0.5
    assert pixels.max() <= 0.5
    torch.testing.assert_close(to_uint8(pixels.movedim(1, -1)), v)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 4, 4)])
@pytest.mark.parametrize("linear", [True, False])
def test_shapes(patch, linear):
    config = VQVAEConfig(
        downsample=(2, 4, 4), patch=patch, linear_start=linear, n_hidden=8, n_res_layers=1, n_codes=16, code_dim=4
    )
    model = VQVAE(config).eval()
    v = video()
    assert model.encode_features(v).shape == (2, 2, 4, 2, 4)
    codes = model.encode(v)
    assert codes.shape == (2, *config.latent_grid(4, 16, 8))
    assert codes.dtype == torch.int64
    decoded = model.decode(codes)
    assert decoded.shape == v.shape
    assert decoded.dtype == torch.uint8
    reconstruction, same = model.reconstruct(v)
    torch.testing.assert_close(same, codes)
    torch.testing.assert_close(to_uint8(reconstruction), decoded)


def test_strides_of_the_study():
    assert halvings((4, 16, 16), (1, 1, 1)) == [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
    assert halvings((4, 8, 8), (4, 8, 8)) == []


def test_principal_components_agree_with_sklearn():
    x = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32) * np.arange(1, 13, dtype=np.float32)
    found = principal_components(torch.from_numpy(x), 4).numpy()
    expected = TruncatedSVD(4, algorithm="arpack").fit(x).components_.T
    np.testing.assert_allclose(np.abs((found * expected).sum(0)), 1, atol=1e-4)


def test_first_batch_starts_the_linear_path_at_the_best_linear_code():
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(downsample=(1, 2, 2), patch=(1, 2, 2), n_hidden=8, n_res_layers=0, n_codes=4, code_dim=5))
    v = video(4)
    model.train()(v)
    patches = fold((to_float(v) - model.pixel_mean[:, None, None, None]) / model.pixel_std, (1, 2, 2))
    flat = patches.movedim(1, -1).reshape(-1, 12)
    svd = TruncatedSVD(5, algorithm="arpack").fit(flat.numpy())
    best = svd.inverse_transform(svd.transform(flat.numpy()))
    with torch.no_grad():
        found = fold(model.decoder(model.encoder(unfold(patches, (1, 2, 2)))), (1, 2, 2)).movedim(1, -1).reshape(-1, 12)
    np.testing.assert_allclose(found.numpy(), best, atol=1e-3)


def test_training_reduces_the_loss_and_autocast_agrees():
    torch.manual_seed(0)
    model = VQVAE(SMALL).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    v = video(4)
    losses = []
    for _ in range(25):
        loss = model(v).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    model.eval()
    with torch.no_grad():
        plain = model(v)
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(v)
    assert cast.loss.dtype == torch.float32
    # bf16 keeps 8 bits: a code on a border may differ, the error may not.
    assert float((cast.codes == plain.codes).float().mean()) > 0.9
    torch.testing.assert_close(cast.loss, plain.loss, rtol=0.03, atol=0)


def test_axial_attention_sees_its_three_lines_and_nothing_else():
    torch.manual_seed(0)
    attention = AxialAttention(6, 2)
    x = torch.randn(1, 3, 4, 5, 6, requires_grad=True)
    attention(x)[0, 1, 2, 3].sum().backward()
    touched = x.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(3, 4, 5, dtype=torch.bool)
    expected[:, 2, 3] = expected[1, :, 3] = expected[1, 2, :] = True
    torch.testing.assert_close(touched, expected)


def test_axial_attention_along_one_axis_is_multi_head_attention():
    torch.manual_seed(0)
    attention = AxialAttention(6, 2)
    x = torch.randn(2, 1, 1, 7, 6)
    expected = torch.zeros(2, 7, 6)
    for axis, (qkv, out) in enumerate(zip(attention.qkv, attention.out, strict=True)):
        lines = x.reshape(2, 7, 6) if axis == 2 else x.reshape(14, 1, 6)
        y, _ = functional.multi_head_attention_forward(
            lines.transpose(0, 1), lines.transpose(0, 1), lines.transpose(0, 1), 6, 2, qkv.weight, None, None, None,
            False, 0.0, out.weight, out.bias, need_weights=False,
        )  # fmt: skip
        expected += y.transpose(0, 1).reshape(2, 7, 6)
    torch.testing.assert_close(attention(x).reshape(2, 7, 6), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"downsample": (3, 8, 8)},
        {"downsample": (4, 8, 8), "patch": (8, 1, 1)},
        {"n_codes": 70_000},
        {"l1": 1.5},
        {"code_dim": 0},
        {"quantizer": "fsq", "n_codes": 999},
        {"quantizer": "fsq", "fsq_levels": (1, 8), "n_codes": 8},
        {"network": "study"},
        {"network": "study", "linear_start": False, "patch": (1, 2, 2)},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        VQVAEConfig(**wrong)


def test_heads_and_clips_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="7 heads do not divide a width of 240"):
        VQVAEConfig(n_heads=7)
    with pytest.raises(ModelError, match="16 x 60 x 64"):
        VQVAEConfig().latent_grid(16, 60, 64)
    # Strided convolutions would take such clips and drop their edge.
    for use in (VQVAE(SMALL).eval().encode, VQVAE(SMALL).eval(), VQVAE(SMALL).eval().reconstruct):
        with pytest.raises(ModelError, match="4 x 18 x 8 are not multiples"):
            use(torch.zeros(1, 4, 18, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize("downsample", [(2, 4, 4), (1, 2, 4), (4, 1, 2), (1, 8, 1)])
def test_videogpts_network_takes_any_powers_of_two(downsample):
    config = VQVAEConfig(
        downsample=downsample, network="study", linear_start=False, n_hidden=8, n_res_layers=1, n_codes=16, code_dim=4
    )
    model = VQVAE(config).train()
    v = video()
    output = model(v)
    output.loss.backward()
    assert output.codes.shape == (2, *config.latent_grid(4, 16, 8))
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval().decode(model.encode(v)).shape == v.shape
    # Pixels enter as they are, and the error is divided by VideoGPT's constant.
    with torch.no_grad():
        output = model(v)
    assert float(output.loss) == pytest.approx(float(output.mse) / 0.06 + 0.25 * float(output.commitment), rel=1e-5)


def test_the_papers_tokenizer_has_the_published_number_of_parameters():
    from vidbrain.models.presets import PAPER_VQVAE, preset_of

    model = VQVAE(PAPER_VQVAE)
    assert preset_of(PAPER_VQVAE) == "paper"
    assert preset_of(VQVAEConfig(n_codes=64, code_dim=8)) == "modern"
    encoder, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder))
    assert encoder == pytest.approx(18.66 + 240 * 128 / 1e6, abs=0.02)  # the 1 x 1 x 1 convolutions are counted here
    assert decoder == pytest.approx(17.10 + 240 * 128 / 1e6, abs=0.02)
