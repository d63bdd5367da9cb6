"""Checkpoint reading and writing, and the float Vim against a small NumPy reference written here."""

import csv
import errno
import json
import os
import pickle
import re
import struct
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402

from bitexact.checkpoint import CheckpointError, load_checkpoint, read_metadata, save_checkpoint  # noqa: E402
from bitexact.vim import Vim, VimConfig, selective_scan  # noqa: E402
from intsim.errors import UserError  # noqa: E402

# Every size differs from every other, so that a mixed-up axis cannot pass.
CFG = VimConfig(
    image_height=10,
    image_width=14,
    channels=3,
    patch=4,
    stride=2,
    width=6,
    depth=2,
    d_inner=11,
    d_state=5,
    dt_rank=2,
    d_conv=4,
    classes=7,
)


def random_state(cfg=CFG, seed=0):
    """A state of random values, all of which matter; float32."""
    model = Vim(cfg)
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    state = {}
    for key, value in model.state_dict().items():
        state[key] = value + 0.3 * torch.randn(value.shape, generator=generator)
    return state


def same(one, two):
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


# Round trips


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("suffix", "wrapper"),
    [(".pth", None), (".pth", "model"), (".pth", "state_dict"), (".pth", "module."), (".safetensors", None)]
    + [(".safetensors", "module.")],
)
def test_round_trip(tmp_path, dtype, wrapper, suffix):
    state = {key: value.to(dtype) for key, value in random_state().items()}
    path = tmp_path / ("vim" + suffix)
    keys = {("module." if wrapper == "module." else "") + key: value for key, value in state.items()}
    if suffix == ".safetensors":
        safetensors.torch.save_file(keys, path)
    else:
        torch.save({wrapper: keys, "epoch": 3} if wrapper in ("model", "state_dict") else keys, path)
    cfg, loaded = load_checkpoint(path, image_size=(10, 14))
    assert cfg == CFG
    assert set(loaded) == set(state)
    for key, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float())
    Vim(cfg).load_state_dict(loaded, strict=True)


def test_official_training_checkpoint_with_its_arguments(tmp_path):
    path = tmp_path / "vim.pth"
    torch.save({"model": random_state(), "optimizer": {"state": {}}, "args": Namespace(lr=0.1), "epoch": 1}, path)
    assert load_checkpoint(path, (10, 14))[0] == CFG


def test_loaded_tensors_do_not_alias_the_file(tmp_path):
    path = tmp_path / "vim.safetensors"
    save_checkpoint(path, random_state(), None, torch.float32)
    _, first = load_checkpoint(path, (10, 14))
    first["norm_f.weight"].fill_(9)
    _, second = load_checkpoint(path, (10, 14))
    assert not (second["norm_f.weight"] == 9).any()


def test_save_is_deterministic_and_keeps_metadata(tmp_path):
    metadata = {"image_size": [10, 14], "stride": 2, "classes": ["a", "b"], "top1": 0.5}
    names = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for name in names[:2]:
        save_checkpoint(name, random_state(), metadata, torch.float16)
    save_checkpoint(names[2], dict(reversed(random_state().items())), dict(reversed(metadata.items())), torch.float16)
    assert len({name.read_bytes() for name in names}) == 1
    assert read_metadata(names[0]) == metadata
    cfg, state = load_checkpoint(names[0])
    assert cfg == CFG
    assert same(state, {k: v.half().float() for k, v in state.items()})
    assert sorted(os.listdir(tmp_path)) == [name.name for name in names]


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "vim.safetensors"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=re.escape(f"{path}: cannot be written: No space left on device")):
        save_checkpoint(path, random_state(), None, torch.float16)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["vim.safetensors"]


def test_save_refuses_what_overflows(tmp_path):
    state = random_state()
    state["head.bias"][2] = 1e5
    with pytest.raises(CheckpointError, match="head.bias.*float16"):
        save_checkpoint(tmp_path / "a.safetensors", state, None, torch.float16)
    save_checkpoint(tmp_path / "a.safetensors", state, None, torch.bfloat16)
    with pytest.raises(CheckpointError, match="dtype is torch.float64; allowed are"):
        save_checkpoint(tmp_path / "b.safetensors", state, None, torch.float64)
    assert os.listdir(tmp_path) == ["a.safetensors"]


# Image size and stride


def with_tokens(tokens, patch=4):
    state = random_state()
    state["pos_embed"] = torch.randn(1, tokens, CFG.width)
    state["patch_embed.proj.weight"] = torch.randn(CFG.width, 3, patch, patch)
    return state


@pytest.mark.parametrize(
    ("patch", "tokens", "size", "expected"),
    [
        (4, 65, 32, (32, 32, 4)),
        (16, 197, 224, (224, 224, 16)),
        (16, 27 * 27 + 1, 224, (224, 224, 8)),  # the "+" models
        (16, 197, (224, 224), (224, 224, 16)),
        (4, 7, (8, 12), (8, 12, 4)),
        (4, 7, (10, 13), (10, 13, 4)),  # pixels left over at the edge, as in a strided convolution
        (16, 197, None, (224, 224, 16)),
        (4, 2, None, (4, 4, 4)),
        (4, 5, [7, 7], (7, 7, 3)),
    ],
)
def test_stride_from_the_token_count(tmp_path, patch, tokens, size, expected):
    path = tmp_path / "vim.pth"
    torch.save(with_tokens(tokens, patch), path)
    cfg, _ = load_checkpoint(path, size)
    assert (cfg.image_height, cfg.image_width, cfg.stride) == expected
    assert cfg.tokens == tokens


@pytest.mark.parametrize("metadata", [{"image_size": [10, 14]}, {"image_size": [10, 14], "stride": 2}])
def test_metadata_gives_the_size(tmp_path, metadata):
    path = tmp_path / "vim.safetensors"
    save_checkpoint(path, random_state(), metadata, torch.float32)
    assert load_checkpoint(path)[0] == CFG
    plain = {key: json.dumps(value) for key, value in metadata.items()}
    safetensors.torch.save_file(random_state(), path, plain)
    assert load_checkpoint(path)[0] == CFG


def test_metadata_stride_alone(tmp_path):
    path = tmp_path / "vim.safetensors"
    save_checkpoint(path, with_tokens(17), {"stride": 2}, torch.float32)
    cfg, _ = load_checkpoint(path)
    assert (cfg.image_height, cfg.image_width, cfg.stride, cfg.tokens) == (10, 10, 2, 17)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (None, "pos_embed' has 25 tokens, which is no square grid|an image size is needed"),
        (12, "no stride gives for an image of 12 x 12 and patches of 4"),
        (3, "image_size is 3 x 3; allowed are sides from the patch size, 4, up"),
        (0, "image_size is 0; allowed are an integer 1 .. 65536"),
        (-4, "image_size is -4"),
        ("32", "image_size is '32'"),
        ((32,), r"image_size is \(32,\)"),
        ((32, 32.0), "image_size is"),
        (True, "image_size is True"),
    ],
)
def test_impossible_image_size(tmp_path, size, message):
    path = tmp_path / "vim.pth"
    torch.save(random_state(), path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, size)


def test_bad_metadata(tmp_path):
    path = tmp_path / "vim.safetensors"
    safetensors.torch.save_file(random_state(), path, {"vim": "{"})
    with pytest.raises(CheckpointError, match="metadata 'vim' is not JSON"):
        load_checkpoint(path)
    safetensors.torch.save_file(random_state(), path, {"vim": "[1]"})
    with pytest.raises(CheckpointError, match="allowed is a JSON object"):
        load_checkpoint(path)
    save_checkpoint(path, random_state(), {"image_size": "big"}, torch.float32)
    with pytest.raises(CheckpointError, match="metadata 'image_size' is 'big'"):
        load_checkpoint(path)
    save_checkpoint(path, random_state(), {"stride": 0}, torch.float32)
    with pytest.raises(CheckpointError, match="metadata 'stride' is 0"):
        load_checkpoint(path)


# Keys, shapes and values


@pytest.mark.parametrize("key", sorted(random_state()))
def test_every_key_is_needed(tmp_path, key):
    state = random_state()
    del state[key]
    path = tmp_path / "vim.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, (10, 14))
    assert f"'{key}' is missing" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", sorted(random_state()))
def test_every_shape_is_checked(tmp_path, key):
    state = random_state()
    state[key] = torch.cat([state[key], state[key][..., :1]], -1)
    path = tmp_path / "vim.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="shape|rows"):
        load_checkpoint(path, (10, 14))
    state[key] = state[key].flatten()[:0]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="shape"):
        load_checkpoint(path, (10, 14))


def test_wrong_shape_names_key_value_and_allowed(tmp_path):
    state = random_state()
    state["layers.1.mixer.D_b"] = torch.ones(12)
    path = tmp_path / "vim.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, (10, 14))
    assert str(caught.value) == f"{path}: key 'layers.1.mixer.D_b' has shape [12]; allowed is [11]"


@pytest.mark.parametrize("key", ["layers.0.mixer.extra", "head_dist.weight", "layers.01.norm.weight", "layers.-1.x"])
def test_left_over_key(tmp_path, key):
    state = random_state()
    state[key] = torch.ones(6)
    path = tmp_path / "vim.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, (10, 14))
    assert f"'{key}' is left over" in str(caught.value)


def test_missing_layer_and_absurd_layer(tmp_path):
    path = tmp_path / "vim.pth"
    for index in (3, 10**12):
        state = random_state()
        for key in [k for k in state if k.startswith("layers.1.")]:
            state[key.replace("layers.1.", f"layers.{index}.")] = state.pop(key)
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=r"'layers\.1\.norm\.weight' is missing"):
            load_checkpoint(path, (10, 14))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["cls_token", "layers.1.mixer.A_b_log", "head.weight"])
def test_values_that_are_not_finite(tmp_path, key, value):
    state = random_state()
    state[key].view(-1)[3] = value
    path = tmp_path / "vim.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"'{key}' has 1 of .* NaN or infinite"):
        load_checkpoint(path, (10, 14))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.complex64])
def test_other_dtypes(tmp_path, dtype):
    state = random_state()
    state["norm_f.weight"] = state["norm_f.weight"].to(dtype)
    path = tmp_path / "vim.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="'norm_f.weight' has dtype .*allowed are dense float16"):
        load_checkpoint(path, (10, 14))


def test_sparse_tensor(tmp_path):
    state = random_state()
    state["head.weight"] = state["head.weight"].to_sparse()
    path = tmp_path / "vim.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="'head.weight' has dtype .*sparse"):
        load_checkpoint(path, (10, 14))


@pytest.mark.parametrize("content", [{}, [], 3, "text", {"model": {}}, {"model": 3}, {3: torch.ones(1)}, {"a": "b"}])
def test_not_a_state(tmp_path, content):
    path = tmp_path / "vim.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="holds"):
        load_checkpoint(path)


def test_another_architecture(tmp_path):
    path = tmp_path / "deit.pth"
    state = {"cls_token": torch.ones(1, 1, 6), "blocks.0.attn.qkv.weight": torch.ones(18, 6)}
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"no Vision Mamba.*'blocks.0.attn.qkv.weight'"):
        load_checkpoint(path)


def test_one_directional_vim(tmp_path):
    path = tmp_path / "v1.pth"
    torch.save({k: v for k, v in random_state().items() if "_b." not in k and "_b_" not in k and "D_b" not in k}, path)
    with pytest.raises(CheckpointError, match="'layers.0.mixer.conv1d_b.weight' is missing"):
        load_checkpoint(path, (10, 14))


# Damage and malice


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("protocol", [None, 0, 2, 4])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, protocol):
    path, target = tmp_path / "evil.pth", tmp_path / "ran"
    value = {"model": random_state() if protocol is None else {}, "args": Evil(str(target))}
    if protocol is None:
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(CheckpointError, match="evil.pth: ") as caught:
        load_checkpoint(path)
    assert not target.exists()
    if protocol is None:
        assert "asks for" in str(caught.value)
        assert "could run code" in str(caught.value)
    assert "\n" not in str(caught.value)
    with open(path, "rb") as file:  # the file does run code when loaded carelessly
        if protocol is not None:
            pickle.load(file).get("args").close()
            assert target.exists()


def test_a_pickled_module_is_refused(tmp_path):
    path = tmp_path / "module.pth"
    torch.save(Vim(CFG), path)
    with pytest.raises(CheckpointError, match="asks for 'bitexact.vim.Vim'"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_anywhere(tmp_path, suffix):
    path = tmp_path / ("vim" + suffix)
    if suffix == ".pth":
        torch.save(random_state(), path)
    else:
        save_checkpoint(path, random_state(), None, torch.float16)
    content = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 100, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=str(path)) as caught:
            load_checkpoint(path, (10, 14))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_not_a_checkpoint_at_all(tmp_path, suffix):
    path = tmp_path / ("x" + suffix)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(path)
    for content in (b"hello, world, this is text", bytes(range(256)) * 8, struct.pack("<Q", 2**60) + b"{}"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a"):
            load_checkpoint(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="folder"):
        load_checkpoint(path)


def test_embedded_checkpoint():
    folder = Path(__file__).resolve().parents[1] / "intsim" / "embedded"
    path = folder / "vim_cifar10.safetensors"
    assert path.stat().st_size <= 3.4e6
    cfg, state = load_checkpoint(path)
    metadata = read_metadata(path)
    assert (cfg.image_height, cfg.image_width, cfg.tokens, cfg.classes) == (32, 32, 65, 10)
    assert metadata["top1_float"] >= 87
    with open(folder / "images" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 64
    images = np.stack([np.asarray(Image.open(folder / "images" / row["file"])) for row in rows])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(metadata["mean"]).view(3, 1, 1)) / torch.tensor(metadata["std"]).view(3, 1, 1)
    model = Vim(cfg)
    model.load_state_dict(state)
    with torch.no_grad():
        found = model(x).argmax(-1)
    assert all(metadata["classes"][int(row["label"])] == row["class"] for row in rows)
    assert (found == torch.tensor([int(row["label"]) for row in rows])).sum() >= 57


def test_errors_are_value_errors():
    assert issubclass(CheckpointError, ValueError)


# The float model


def reference_forward(cfg, state, image):
    """Logits and intermediate values of one image in float64, one number at a time where it matters."""
    w = {key: value.numpy().astype(np.float64) for key, value in state.items()}
    seen = {}

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def norm(x, gamma):
        return np.stack([row / np.sqrt((row @ row) / len(row) + 1e-5) * gamma for row in x])

    patches = []
    for top in range(0, cfg.image_height - cfg.patch + 1, cfg.stride):
        for left in range(0, cfg.image_width - cfg.patch + 1, cfg.stride):
            window = image[:, top : top + cfg.patch, left : left + cfg.patch]
            weights = w["patch_embed.proj.weight"]
            patches.append([(weights[o] * window).sum() for o in range(cfg.width)] + w["patch_embed.proj.bias"])
    middle = len(patches) // 2
    patches.insert(middle, w["cls_token"][0, 0])
    x = np.array(patches) + w["pos_embed"][0]
    seen["tokens"] = x
    length = len(x)

    for n in range(cfg.depth):
        mix = f"layers.{n}.mixer."
        projected = norm(x, w[f"layers.{n}.norm.weight"]) @ w[mix + "in_proj.weight"].T
        inner_x, z = projected[:, : cfg.d_inner], projected[:, cfg.d_inner :]
        total = np.zeros((length, cfg.d_inner))
        for suffix, order in (("", range(length)), ("_b", range(length - 1, -1, -1))):
            history = [np.zeros(cfg.d_inner)] * (cfg.d_conv - 1)
            h = np.zeros((cfg.d_inner, cfg.d_state))
            a = -np.exp(w[mix + f"A{suffix}_log"])
            for position, t in enumerate(order):
                history.append(inner_x[t])
                kernel = w[mix + f"conv1d{suffix}.weight"][:, 0]
                recent = history[-cfg.d_conv :]
                u = sum(kernel[:, k] * recent[k] for k in range(cfg.d_conv)) + w[mix + f"conv1d{suffix}.bias"]
                u = u * sigmoid(u)
                low, b, c = np.split(w[mix + f"x_proj{suffix}.weight"] @ u, [cfg.dt_rank, cfg.dt_rank + cfg.d_state])
                delta = w[mix + f"dt_proj{suffix}.weight"] @ low + w[mix + f"dt_proj{suffix}.bias"]
                delta = np.logaddexp(0, delta)
                for channel in range(cfg.d_inner):
                    for s in range(cfg.d_state):
                        h[channel, s] *= np.exp(delta[channel] * a[channel, s])
                        h[channel, s] += delta[channel] * b[s] * u[channel]
                y = h @ c + w[mix + f"D{suffix}"] * u
                total[t] += y
                seen.setdefault(mix + f"scan{suffix}.y", {})[position] = y
                seen.setdefault(mix + f"softplus{suffix}.out", {})[position] = delta
                seen.setdefault(mix + f"x_proj{suffix}.C", {})[position] = c
                seen.setdefault(mix + f"scan{suffix}.h", {})[position] = h.copy()
        gated = total / 2 * z * sigmoid(z)
        seen[mix + "gate.out"] = gated
        x = x + gated @ w[mix + "out_proj.weight"].T
        seen[f"layers.{n}.residual"] = x
    final = norm(x, w["norm_f.weight"])[middle]
    seen["norm_f.out"] = final[None]
    return w["head.weight"] @ final + w["head.bias"], seen


def test_forward_against_reference():
    state = random_state(seed=3)
    model = Vim(CFG).double()
    model.load_state_dict(state)
    images = torch.randn(3, 3, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    taps = {}
    with torch.no_grad():
        logits = model(images, taps).numpy()
    for i in range(3):
        expected, seen = reference_forward(CFG, state, images[i].numpy())
        np.testing.assert_allclose(logits[i], expected, rtol=1e-11, atol=1e-12)
        for name, value in seen.items():
            if name.endswith(".h"):
                continue
            if isinstance(value, dict):  # by position in processing order
                value = np.stack([value[t] for t in range(CFG.tokens)])
            np.testing.assert_allclose(taps[name][i].numpy(), value, rtol=1e-10, atol=1e-11, err_msg=name)


def test_states_are_delivered_in_processing_order():
    state = random_state(seed=4)
    model = Vim(CFG).double()
    model.load_state_dict(state)
    images = torch.randn(1, 3, 10, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    _, seen = reference_forward(CFG, state, images[0].numpy())
    got = {}
    with torch.no_grad():
        x = model.embed(images)
        for block in model.layers:
            x = block(x, None, lambda name, t, h: got.setdefault(name, []).append((t, h.clone())))
    assert set(got) == {f"layers.{n}.mixer.scan{s}" for n in range(2) for s in ("", "_b")}
    for name, states in got.items():
        assert [t for t, _ in states] == list(range(CFG.tokens))
        for t, h in states:
            np.testing.assert_allclose(h[0].numpy(), seen[name + ".h"][t], rtol=1e-10, atol=1e-12)


def test_taps_have_every_documented_name_and_shape():
    model = Vim(CFG)
    taps = {}
    model(torch.randn(2, 3, 10, 14), taps)
    t, d, inner = CFG.tokens, CFG.width, CFG.d_inner
    expected = {"patch_embed.proj.out": (t - 1, d), "tokens": (t, d), "norm_f.out": (1, d), "head.out": None}
    for n in range(CFG.depth):
        expected |= {f"layers.{n}.norm.out": (t, d), f"layers.{n}.residual": (t, d)}
        mix = f"layers.{n}.mixer."
        expected |= {mix + name: (t, inner) for name in ("in_proj.x", "in_proj.z", "silu_z.out", "gate.out")}
        expected[mix + "out_proj.out"] = (t, d)
        for s in ("", "_b"):
            for name in (f"conv1d{s}.out", f"silu{s}.out", f"dt_proj{s}.out", f"softplus{s}.out", f"scan{s}.y"):
                expected[mix + name] = (t, inner)
            expected[mix + f"x_proj{s}.dt"] = (t, CFG.dt_rank)
            expected[mix + f"x_proj{s}.B"] = expected[mix + f"x_proj{s}.C"] = (t, CFG.d_state)
    assert set(taps) == set(expected)
    for name, shape in expected.items():
        assert tuple(taps[name].shape) == ((2, CFG.classes) if shape is None else (2, *shape)), name
        assert not taps[name].requires_grad


def test_layer_by_layer_is_the_whole():
    model = Vim(CFG).eval()
    images = torch.randn(2, 3, 10, 14)
    with torch.no_grad():
        whole, x = model(images), model.embed(images)
        for block in model.layers:
            x = block(x)
        assert torch.equal(model.head_out(x), whole)


def test_scan_starts_at_zero_and_skips_with_d():
    one = torch.ones(1, 1, 1)
    out = selective_scan(3 * one, 2 * one, -one[0], 5 * one, 7 * one, torch.tensor([11.0]))
    assert out.item() == 2 * 3 * 5 * 7 + 11 * 3


@pytest.mark.parametrize("size", [(3, 10, 13), (3, 14, 10), (1, 10, 14)])
def test_images_of_the_wrong_size(size):
    with pytest.raises(ValueError, match=r"allowed is \[batch, 3, 10, 14\]"):
        Vim(CFG)(torch.zeros(1, *size))


@pytest.mark.parametrize(
    ("field", "value"), [("depth", 0), ("width", 1.5), ("classes", True), ("patch", 11), ("eps", 0.0)]
)
def test_config_refuses(field, value):
    fields = {name: getattr(CFG, name) for name in CFG.__dataclass_fields__}
    with pytest.raises(ValueError, match=field):
        VimConfig(**{**fields, field: value})


def test_initial_weights_are_seeded_and_official():
    one, two = Vim(CFG), Vim(CFG)
    one.reset_parameters(torch.Generator().manual_seed(1))
    two.reset_parameters(torch.Generator().manual_seed(1))
    assert same(one.state_dict(), two.state_dict())
    mixer = one.layers[0].mixer
    steps = torch.nn.functional.softplus(mixer.dt_proj_b.bias)
    assert (steps > 0.9e-3).all()
    assert (steps < 0.101).all()
    assert torch.allclose(mixer.A_b_log.exp(), torch.arange(1.0, 6.0).expand(11, 5))
    assert (mixer.D == 1).all()
