"""A stranger's re-implementation of the whole network: written from SPEC.md and FORMAT.md, with NumPy alone.

It imports nothing of the project and reads nothing but a bundle: `manifest.json` and the `.hex` files of the
constants and of the image.  `recompute(bundle, index)` gives every tensor, to be compared with the files.
"""

import json
import math
from pathlib import Path

import numpy as np


def read_hex(path, entry):
    """Integers of a memory file by FORMAT section 2, int64 in the declared shape."""
    words = [line for line in path.read_text("ascii").split("\n") if line and not line.startswith("//")]
    assert len(words) == entry["words"]
    assert all(len(word) == entry["hex_digits"] for word in words)
    raw = [int(word, 16) for word in words]
    top = 1 << (entry["bits"] - 1)
    if entry["signed"]:
        raw = [q - 2 * top if q & top else q for q in raw]
    return np.array(raw, dtype=np.int64).reshape(entry["shape"])


class Stranger:
    def __init__(self, bundle):
        self.bundle = Path(bundle)
        self.manifest = json.loads((self.bundle / "manifest.json").read_text("ascii"))
        self.tensors = self.manifest["tensors"]
        self.mode = self.manifest["program"]["rounding"]
        self.constants = {
            name: read_hex(self.bundle / entry["files"]["hex"]["file"], entry)
            for name, entry in self.manifest["constants"].items()
        }

    # Section 2

    def round_shift(self, v, s):
        v, s = np.broadcast_arrays(v, s)
        out = np.empty(v.shape, dtype=np.int64)
        for here in np.unique(s):
            s1, at = int(here), s == here
            x = v[at]
            if s1 <= 0:
                out[at] = x << -s1
            elif self.mode == "floor":
                out[at] = x >> s1
            elif self.mode == "half_up":
                out[at] = (x + (1 << (s1 - 1))) >> s1
            elif self.mode == "half_away":
                out[at] = (x + (1 << (s1 - 1)) - (x < 0)) >> s1
            else:
                t = x >> s1
                m = x - (t << s1)
                half = 1 << (s1 - 1)
                out[at] = t + ((m > half) | ((m == half) & (t % 2 == 1)))
        return out

    def sat(self, v, name):
        entry = self.tensors[name]
        if entry["signed"]:
            return np.clip(v, -(1 << (entry["bits"] - 1)), (1 << (entry["bits"] - 1)) - 1)
        return np.clip(v, 0, (1 << entry["bits"]) - 1)

    def requantize(self, v, s, name):
        return self.sat(self.round_shift(v, s), name)

    def shift(self, name, axis):
        """T.shift along an axis: its group term, 0 where it has none."""
        entry = self.tensors[name]
        total = np.zeros(entry["shape"][entry["axes"].index(axis)], dtype=np.int64)
        for group in entry["groups"]:
            if group["axis"] == axis:
                total = total + np.array(group["shifts"], dtype=np.int64)[group["index"]]
        return total

    def recompute(self, index):
        """Every tensor of image number `index`, int64."""
        image = self.manifest["images"][index]
        entry = image["tensors"]["image"]["files"]["hex"]
        self.values = {"image": read_hex(self.bundle / entry["file"], self.tensors["image"])}
        for op in self.manifest["operators"]:
            inputs = {port: self.values[name] for port, name in op["inputs"].items()}
            constants = {role: self.constants[name] for role, name in op["constants"].items()}
            self.op = op
            made = getattr(self, op["kind"])(constants, op["attributes"], **inputs)
            for port in op["outputs"]:
                self.values[self.out(port)] = made[port]
        return self.values

    def out(self, port="out"):
        return f"{self.op['name']}.{port}"

    # Section 13

    def fit(self, v, name):
        """A value in the narrow accumulator of that name: clamped, or modulo 2^bits."""
        entry = self.tensors[name]
        if entry["overflow"] == "saturate":
            return self.sat(v, name)
        half = 1 << (entry["bits"] - 1)
        return (v + half) % (2 * half) - half

    def total(self, start, terms, port="acc"):
        """start and the terms, in their order, in the accumulator at `port`."""
        if "overflow" not in self.tensors[self.out(port)]:
            return start + sum(terms)
        start = self.fit(start, self.out(port))
        for term in terms:
            start = self.fit(start + term, self.out(port))
        return start

    # Section 5, in its order

    def patch_embed(self, c, a, image):
        height, width, channels = image.shape
        patch, stride = a["patch"], a["stride"]
        ph, pw = (height - patch) // stride + 1, (width - patch) // stride + 1
        pixels = np.zeros((ph * pw, channels * patch * patch), dtype=np.int64)
        for p in range(ph * pw):
            for ch in range(channels):
                for i in range(patch):
                    for j in range(patch):
                        k = (ch * patch + i) * patch + j
                        pixels[p, k] = image[(p // pw) * stride + i, (p % pw) * stride + j, ch] - 128
        start = np.broadcast_to(c["bias"], (len(pixels), len(c["bias"])))
        acc = self.total(start, [pixels[:, k, None] * c["weight"][:, k] for k in range(pixels.shape[1])])
        return {"acc": acc, "out": self.requantize(acc, c["shift"], self.out())}

    def insert_token(self, c, a, x):
        u = np.concatenate([x[: a["position"]], c["cls_token"][None], x[a["position"] :]])
        return {"out": self.sat(u + c["pos_embed"], self.out())}

    def rmsnorm(self, c, a, x):
        tokens, width = x.shape
        square_sum, rsqrt = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64)
        normed = np.zeros((tokens, width), np.int64)
        for t in range(tokens):
            v = a["eps_q"] + sum(int(q) ** 2 for q in x[t])
            k = (32 - v.bit_length()) // 2
            w = v << 2 * k if k >= 0 else v >> -2 * k
            r = math.isqrt((a["d_norm"] << 52) // w)
            square_sum[t], rsqrt[t] = v, r
            normed[t] = self.round_shift(x[t] * r, np.int64(14 + a["d_shift"] - k))
        out = self.requantize(normed * c["gamma"], c["shift"], self.out())
        return {"square_sum": square_sum, "rsqrt": rsqrt, "normed": normed, "out": out}

    def linear(self, c, a, x):
        name = self.op["inputs"]["x"]
        channel, token = self.shift(name, "channel"), self.shift(name, "token")
        groups = [g["index"] for g in self.tensors[name]["groups"] if g["axis"] == "channel"]
        order = sorted(range(x.shape[1]), key=lambda i: (groups[0][i] if groups else 0, i))
        start = np.broadcast_to(c["bias"], (len(x), len(c["bias"])))
        products = [(x[:, i, None] * c["weight"][:, i]) << (channel[i] + token[:, None]) for i in order]
        acc = self.total(start, products)
        made = {"acc": acc}
        for segment in a["segments"]:
            rows = slice(segment["start"], segment["stop"])
            made[segment["port"]] = self.requantize(acc[:, rows], c["shift"][rows], self.out(segment["port"]))
        return made

    def conv1d(self, c, a, x):
        if a["reverse"]:
            x = x[::-1]
        taps = c["weight"].shape[1]
        padded = np.concatenate([np.zeros((taps - 1, x.shape[1]), np.int64), x])
        start = np.broadcast_to(c["bias"], x.shape)
        acc = self.total(start, [c["weight"][:, j] * padded[j : j + len(x)] for j in range(taps)])
        return {"acc": acc, "out": self.requantize(acc, c["shift"], self.out())}

    def rom(self, c, a, x):
        return {"out": c["rom"][c["rom_index"], x + 128]}

    def exp2(self, p, f, m, rom):
        t = np.where(f <= 19, p << np.maximum(19 - f, 0), p >> np.maximum(f - 19, 0))
        whole, j, r = t >> 19, (t >> 12) & 127, t & 4095
        v = (rom[j] << 12) - (rom[j] - rom[j + 1]) * r
        return self.round_shift(v, np.minimum(29 - m + whole, 31))

    def scan(self, c, a, delta, u, B, C):
        m, s_c, s_l = a["abar_fraction"], c["A_fraction"], c["state_token_shift"]
        tokens, channels = u.shape
        y_shift = self.shift(self.out("y"), "token")
        made = {port: [] for port in ("dx", "abar", "b", "acc", "h", "y_acc", "y")}
        h = np.zeros((channels, B.shape[1]), dtype=np.int64)
        limit = 2**30 - 1
        for t in range(tokens):
            abar = self.exp2(delta[t][:, None] * c["A"], s_c[:, None], m, c["exp2_rom"])
            dx = delta[t] * u[t]
            b = self.round_shift(dx[:, None] * B[t], (c["b_shift"] + s_l[t])[:, None])
            b = np.clip(b, -limit, limit)
            before = self.requantize(h, s_l[t] - s_l[t - 1], self.out("h")) if t else h
            acc = self.total(b, [abar * before])
            h = self.requantize(acc, np.int64(m), self.out("h"))
            y_acc = self.total(c["D"] * u[t], list(((h * C[t]) << s_l[t]).T), "y_acc")
            y = self.requantize(y_acc, c["y_shift"] + y_shift[t], self.out("y"))
            for port, value in zip(made, (dx, abar, b, acc, h, y_acc, y), strict=True):
                made[port].append(value)
        return {port: np.stack(values) for port, values in made.items()}

    def gate(self, c, a, y, y_b, g):
        forward = a["y_align"] + self.shift(self.op["inputs"]["y"], "token")
        backward = a["y_b_align"] + self.shift(self.op["inputs"]["y_b"], "token")
        y, y_b = y << forward[:, None], (y_b << backward[:, None])[::-1]
        acc = self.total(y, [y_b]) * g
        if "overflow" in self.tensors[self.out("acc")]:
            acc = self.fit(acc, self.out("acc"))
        out = self.requantize(acc, c["shift"] + self.shift(self.out(), "token")[:, None], self.out())
        return {"acc": acc, "out": out}

    def add(self, c, a, x, y):
        return {"out": self.sat(x + y, self.out())}

    def select_token(self, c, a, x):
        return {"out": x[a["position"]][None]}


def recompute(bundle, index=0):
    """Every tensor of image number `index` of a bundle, by name."""
    return Stranger(bundle).recompute(index)
