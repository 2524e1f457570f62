"""Predict, then train, then plot both on one axis, for four theories: a notebook as a script.

    python examples/predict_then_train.py [--out FOLDER] [--quick]

Each cell (`# %%`) asks a theory first and then does what the theory is about with networks of its own; the picture has
what was measured in full lines, with bars of one standard error, and what was predicted in dashed ones. Takes about a
minute on one core; `--quick` takes seconds and shows more noise.
"""

# %% What all cells share
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import layerwright as lw
from layerwright.report.lines import lines
from layerwright.theories import Act, Dense, tower

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("predict-then-train"), help="a folder for the pictures")
parser.add_argument("--quick", action="store_true", help="fewer and smaller networks")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
rng = np.random.default_rng(0)


def measured(x, runs) -> list[tuple[float, ...]]:
    """Means over runs, `[runs, points]`, with an interval of one standard error to each side."""
    means, errors = np.mean(runs, 0), np.std(runs, 0, ddof=1) / len(runs) ** 0.5
    return list(zip(x, means, means - errors, means + errors))


def plot(name: str, series: dict, across: str, up: str, **axes: bool) -> None:
    file = args.out / f"{name}.svg"
    file.write_text(lines(series, across=across, up=up, label=f"{name}: measured and predicted", **axes))
    print(f"wrote {file}")


# %% 1. A deep linear network learns one mode after another, each when the theory says
depth, strengths, start = 3, [3.0, 1.5], 0.01
predicted = lw.predict("deep_linear", depth=depth, modes=strengths, start=start)
print(predicted.table.to_string(index=False))

# The task: whitened inputs, targets that depend on two directions of them.
width, rows = 6, 300
x = np.linalg.qr(rng.standard_normal((rows, width))).Q * rows**0.5
bases = [np.linalg.qr(rng.standard_normal((width, width))).Q for _ in range(depth + 1)]
modes = np.diag([*strengths, *[0.0] * (width - 2)])
y = x @ (bases[-1] @ modes @ bases[0].T).T
x, y = torch.tensor(x), torch.tensor(y)

# The network: matrices that are balanced and aligned with the task, as after a short while from a small start.
net = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth))).double()
for k, layer in enumerate(net):
    layer.weight.data = torch.tensor(start ** (1 / depth) * bases[k + 1] @ bases[k].T)
rate = 0.02 if args.quick else 0.005
last = max(time for time, _ in predicted.picture.series["s = 1.5"])
optimizer = torch.optim.SGD(net.parameters(), lr=rate)
times, found = [], []
for step in range(round(last / rate) + 1):
    if step % round(last / rate / 25) == 0:
        product = torch.linalg.multi_dot([layer.weight for layer in reversed(net)]).detach().numpy()
        times.append(rate * step)
        found.append(np.diag(bases[-1].T @ product @ bases[0])[:2] / strengths)
    loss = (net(x) - y).square().sum() / (2 * rows)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
series = {}
for k, s in enumerate(strengths):
    series[f"s = {s:g}, trained"] = list(zip(times, np.array(found)[:, k]))
    series[f"(s = {s:g}, predicted)"] = predicted.picture.series[f"s = {s:g}"]
plot("deep_linear", series, "steps × learning rate (τ)", "strength of the mode / s (1)")


# %% 2. An ensemble of wide networks: the error on new points at any time, and its spread over networks
def target(points: np.ndarray) -> np.ndarray:
    return np.tanh(2 * points[:, 0]) + points[:, 1] * points[:, 2]


x, new = rng.standard_normal((20, 4)), rng.standard_normal((20, 4))
arrays = {"inputs": x, "targets": target(x), "queries": new, "query_targets": target(new)}
rate, steps = 0.5, [1, 4, 16, 64] if args.quick else [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
options = {"activation": "erf", "depth": 1, "weight_variance": 2.0, "bias_variance": 0.1}
predicted = lw.predict("wide_training", arrays, learning_rate=rate, times=[rate * k for k in steps], **options)
table = predicted.table[predicted.table["by"] == "gradient descent"].pivot(index="time", columns="quantity")
mean, deviation = table["mean"]["query error"], table["deviation"]["query error"]
print(mean.to_string())

# The same words give the finite networks; all of them are trained at once.
count, width = (12, 128) if args.quick else (100, 1024)
words = [Dense(2.0, 0.1), Act("erf"), Dense()]
made = [tower(words).network(inputs=4, width=width, seed=seed).double() for seed in range(count)]
weights = {name: w.detach() for name, w in stack_module_state(made)[0].items()}
x, y, new = (torch.tensor(a) for a in (x, target(x), new))


def loss_of(w: dict) -> torch.Tensor:
    return (functional_call(made[0], w, (x,)).squeeze() - y).square().sum() / (2 * len(y))


found = []
for step in range(1, max(steps) + 1):
    slopes = vmap(grad(loss_of))(weights)
    weights = {name: w - rate * slopes[name] for name, w in weights.items()}
    if step in steps:
        outputs = vmap(lambda w: functional_call(made[0], w, (new,)).squeeze())(weights)
        found.append((outputs.numpy() - target(new.numpy())) ** 2)
errors = np.mean(found, 2).T  # of each network, by time
axis = rate * np.array(steps)
series = {
    "networks": measured(axis, errors),
    "(predicted)": list(zip(axis, mean)),
    "their deviation": list(zip(axis, errors.std(0, ddof=1))),
    "(predicted deviation)": list(zip(axis, deviation)),
}
plot("wide_training", series, "learning rate times steps", "squared error on new points (1)", log_across=True)

# %% 3. Ridge regression on random features: the test error by number of features, at two ridges
samples, modes, noise = (100, 300, 0.1) if args.quick else (200, 1000, 0.1)
values, squares = np.arange(1, modes + 1.0) ** -1.5, np.arange(1, modes + 1.0) ** -1.6
coefficients = np.sqrt(squares / squares.sum())
spectrum = {"eigenvalues": values, "coefficients": coefficients}
counts, series = [samples // 4 * 2**k for k in range(6)], {}
for ridge in (0.01, 1.0):
    expected, found = [], []
    for k in counts:
        options = {"samples": samples, "features": k, "ridge": ridge, "noise": noise}
        expected.append(lw.predict("random_features", spectrum, **options)["test_error"])
        runs = []
        for _ in range(4 if args.quick else 20):
            x = rng.standard_normal((samples, modes))
            y = x @ coefficients + noise**0.5 * rng.standard_normal(samples)
            maps = values[:, None] ** 0.5 * rng.standard_normal((modes, k)) / k**0.5
            features = x @ maps
            fit = maps @ (features.T @ np.linalg.solve(features @ features.T + ridge * np.eye(samples), y))
            runs.append(((coefficients - fit) ** 2).sum() + noise)  # over all new samples there can be
        found.append(runs)
    series[f"ridge {ridge:g}"] = measured(counts, np.transpose(found))
    series[f"(ridge {ridge:g}, predicted)"] = list(zip(counts, expected))
    print(f"ridge {ridge:g}, test error predicted:", np.round(expected, 3))
plot("random_features", series, "features", "test error (1)", log=True, log_across=True)

# %% 4. Deep random networks: the variance of the signal by layer, at the critical point and off it
width, depth, nets = (128, 20, 4) if args.quick else (512, 40, 10)
at = lw.predict("criticality", activation="gelu")
series = {}
for factor in (1.0, 1.1):
    weight, bias = factor * at["weight_variance"], at["bias_variance"]
    options = {"activation": "gelu", "weight_variance": weight, "bias_variance": bias, "depth": depth, "start": 3.5}
    expected = next(iter(lw.predict("criticality", **options).picture.series.values()))
    words = [*[Dense(weight, bias), Act("gelu")] * (depth + 1), Dense()]
    x = torch.ones(1, 16) * ((3.5 - bias) / weight) ** 0.5  # the first layer then has a variance of 3.5
    runs = []
    for seed in range(nets):
        signal, variances = x, []
        with torch.no_grad():
            for k, module in enumerate(tower(words).network(16, width, seed=seed)[:-1]):
                signal = module(signal)
                if k % 2 == 0:  # dense layers; activations stand between
                    variances.append(float(signal.square().mean()))
        runs.append(variances)
    name = "critical" if factor == 1 else "10 % more"
    series[name], series[f"({name}, predicted)"] = measured(range(depth + 1), runs), expected
    print(f"{name}: variance after {depth} layers predicted {expected[-1][1]:.3g}, found {np.mean(runs, 0)[-1]:.3g}")
plot("criticality", series, "layer", "variance of the signal (1)", log=True)
