"""Generates traces of requests to a registry.

The model has repositories with tags that move and popularity that decays, shared base layers, clients that keep the
layers they pulled, scans, and repositories that are abandoned.

The same name, seed and parameters give the same trace with the same version of numpy (see NEP 19), which the lock file
pins. The results depend on the order of the calls of the random generator: do not reorder them.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from .trace import Kind, Trace, TraceError

DAY = 86400.0

# Quantiles of layer sizes in bytes and of layers per image. Source: container-chonks, a survey of Docker Hub and other
# registries in 2024, with one image per name.
SIZE_QUANTILES = (0, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95, 0.99, 1)
SIZES = (
    *(32, 626, 857, 1657, 7111, 72955, 473568, 985962, 2207033, 4246327, 9996324, 15568006, 28116804),
    *(46073883, 75411415, 187662233, 1.2e9, 9.067e9),
)
COUNT_QUANTILES = (0, 0.25, 0.35, 0.45, 0.50, 0.55, 0.60, 0.65, 0.75, 0.80, 0.85, 0.90, 0.95, 1)
COUNTS = (1, 6, 7, 8, 9, 10, 11, 12, 14, 15, 17, 21.6, 30.8, 60)
LOG_SIZES = np.log(np.array(SIZES))


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of the model. Times are in days."""

    days: float = 60.0
    pulls: int = 90000
    """Number of pulls before `diurnal` removes some."""
    repos: int = 3000
    new_per_day: float = 15.0
    alpha: float = 1.0
    """Zipf exponent of the popularity of repositories."""
    eph_frac: float = 0.7
    """Share of repositories whose popularity decays, with a half-life around `tau_med`."""
    tau_med: float = 15.0
    tau_sig: float = 0.8
    push_lo: float = 0.5
    """The mean time between two pushes to a repository is between this and `push_hi`."""
    push_hi: float = 45.0
    p_latest: float = 0.6
    pin_alpha: float = 1.3
    """Zipf exponent of the popularity of the last `hist` versions, for pulls that do not pull the latest."""
    hist: int = 8
    clients: int = 400
    client_gb: float = 40.0
    client_alpha: float = 0.8
    p_cold: float = 0.4
    """Share of pulls by clients that have no layers yet."""
    bases: int = 80
    base_alpha: float = 1.0
    base_period: float = 30.0
    onehit: float = 0.10
    """Share of pulls of images that are pulled only once."""
    scans: int = 1
    scan_images: int = 300
    scan_hours: float = 6.0
    diurnal: float = 0.5
    kill_day: float = 0.0
    """The day when the `kill_top` most popular repositories are abandoned; 0 for never."""
    kill_top: int = 0


SMALL = Parameters(pulls=8000, repos=250, new_per_day=1.0, bases=20, clients=25, scan_images=60, days=60.0, onehit=0.06)
PRESETS = {
    "small": SMALL,
    "drift": replace(SMALL, new_per_day=6.0, tau_med=5.0),
    "scan": replace(SMALL, scans=3, scan_images=150),
    "death": replace(SMALL, kill_day=30.0, kill_top=30),
    "large": Parameters(),
}


def generate(name: str, seed: int, parameters: Parameters) -> Trace:
    """Generate a trace. Raises `TraceError` if the parameters are not valid."""
    if min(parameters.pulls, parameters.repos, parameters.clients, parameters.bases) < 1 or parameters.days <= 0:
        raise TraceError("pulls, repos, clients, bases and days must be above 0")
    try:
        return _Generator(parameters, seed).make(name)
    except ValueError as error:  # raised by numpy for a parameter that is out of range
        raise TraceError(f"cannot generate a trace with these parameters: {error}") from error


class _Base:
    """A base image, whose layers are replaced from time to time."""

    def __init__(self, generator: "_Generator") -> None:
        self.count = int(generator.rng.integers(1, 6))
        self.next = generator.rng.uniform(0, generator.p.base_period)
        self.first = np.exp(generator.rng.normal(np.log(30e6), 0.6))
        self.renew(generator)

    def renew(self, generator: "_Generator") -> None:
        self.layers = [generator.new(self.first, Kind.LAYER)]
        self.layers += [generator.new(generator.layer_size(), Kind.LAYER) for _ in range(self.count - 1)]


class _Repository:
    """The versions of an image, oldest first. A version is a list of keys: index, manifest, config and layers."""

    def __init__(self, generator: "_Generator", time: float, weight: float) -> None:
        rng, p = generator.rng, generator.p
        total = round(float(np.interp(rng.random(), COUNT_QUANTILES, COUNTS)))
        self.base = (
            generator.bases[int(rng.choice(len(generator.bases), p=generator.base_weights))]
            if rng.random() < 0.9
            else None
        )
        self.own_count = max(1, total - (self.base.count if self.base else 0))
        self.own: list[int] = []
        self.base_layers: list[int] = []
        self.start = time
        self.half_life = inf if rng.random() > p.eph_frac else rng.lognormal(np.log(p.tau_med), p.tau_sig)
        self.push_period = np.exp(rng.uniform(np.log(p.push_lo), np.log(p.push_hi)))
        self.next = time + rng.exponential(self.push_period)
        self.weight = weight
        self.versions: list[list[int]] = []
        self.push(generator)

    def push(self, generator: "_Generator") -> None:
        """Add a version with the current layers of the base image, and own layers of which the last ones are new."""
        rng = generator.rng
        layers = self.base.layers if self.base else []
        if not self.own:
            self.own = [generator.new(generator.layer_size(), Kind.LAYER) for _ in range(self.own_count)]
        else:
            cut = int(rng.integers(0, len(self.own))) if len(self.own) > 1 else 0
            if rng.random() < 0.7:
                cut = max(cut, len(self.own) // 2)
            if layers is not self.base_layers and self.base:
                cut = 0
            self.own = self.own[:cut] + [
                generator.new(self._changed(generator, old), Kind.LAYER) for old in self.own[cut:]
            ]
        self.base_layers = layers
        everything = [*layers, *self.own]
        index = generator.new(np.clip(rng.lognormal(np.log(1800), 0.5), 500, 10000), Kind.MANIFEST)
        manifest = generator.new(500 + 210 * len(everything), Kind.MANIFEST)
        config = generator.new(np.clip(rng.lognormal(np.log(7000), 0.6), 1000, 60000), Kind.CONFIG)
        self.versions.append([index, manifest, config, *everything])

    def _changed(self, generator: "_Generator", old: int) -> float:
        """Size of a layer that replaces the layer `old`: usually about the same."""
        if generator.rng.random() < 0.2:
            return generator.layer_size()
        return float(generator.sizes[old] * np.exp(generator.rng.normal(0, 0.05)))

    def weight_at(self, time: float) -> float:
        return self.weight * (2.0 ** (-(time - self.start) / self.half_life) if self.half_life < inf else 1.0)


class _Client:
    """A machine that keeps the content it pulled most recently, up to `capacity` bytes."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.used = 0.0
        self.held: OrderedDict[int, float] = OrderedDict()

    def pull(self, image: list[int], sizes: list[float]) -> list[tuple[int, float]]:
        """The keys that it requests, each with its delay in seconds; always the index, to resolve the tag."""
        requested = [(image[0], 0.0)]
        if image[1] not in self.held:
            wanted = ((key, 0.2 + 0.2 * at) for at, key in enumerate(image[1:]))
            requested += [(key, delay) for key, delay in wanted if key not in self.held]
        for key in image[1:]:
            if key in self.held:
                self.held.move_to_end(key)
            else:
                self.held[key] = sizes[key]
                self.used += sizes[key]
        while self.used > self.capacity:
            self.used -= self.held.popitem(last=False)[1]
        return requested


class _Generator:
    """The state of the model."""

    def __init__(self, parameters: Parameters, seed: int) -> None:
        self.p = parameters
        self.rng = np.random.default_rng(seed)
        self.sizes: list[float] = []
        self.kinds = bytearray()
        self.bases: list[_Base] = []
        for _ in range(parameters.bases):
            self.bases.append(_Base(self))
        weights = np.arange(1, parameters.bases + 1) ** -parameters.base_alpha
        self.base_weights = weights / weights.sum()
        ranks = self.rng.permutation(parameters.repos) + 1
        self.repositories: list[_Repository] = []
        for rank in ranks:
            repository = _Repository(self, 0.0, float(rank) ** -parameters.alpha)
            repository.start = -self.rng.exponential(10.0) if repository.half_life < inf else 0.0
            self.repositories.append(repository)

    def new(self, size: float, kind: Kind) -> int:
        self.sizes.append(float(size))
        self.kinds.append(kind)
        return len(self.sizes) - 1

    def layer_size(self) -> float:
        return float(np.exp(np.interp(self.rng.random(), SIZE_QUANTILES, LOG_SIZES)))

    def _moments(self) -> list[tuple[float, bool]]:
        """The times of all pulls in days, and whether each belongs to a scan."""
        p, rng = self.p, self.rng
        days = np.sort(rng.random(p.pulls)) * p.days
        awake = rng.random(len(days)) < 1 - p.diurnal * (0.5 + 0.5 * np.cos(2 * np.pi * (days % 1)))
        scans = []
        for scan in range(p.scans):
            start = p.days * (0.45 + 0.5 * scan / max(1, p.scans))
            scans += [(start + rng.uniform(0, p.scan_hours / 24), True) for _ in range(p.scan_images)]
        return sorted([(float(day), False) for day in days[awake]] + scans)

    def _update(self, time: float) -> None:
        """Update base images and repositories. Called every six hours of simulated time."""
        p, rng = self.p, self.rng
        for base in self.bases:
            if time > base.next:
                base.renew(self)
                base.next += p.base_period * rng.uniform(0.7, 1.3)
        for _ in range(rng.poisson(p.new_per_day / 4)):
            weight = float(rng.integers(1, p.repos + 1)) ** -p.alpha
            self.repositories.append(_Repository(self, time, weight))
        for repository in self.repositories:
            if repository.next < time and (time - repository.start) < 6 * repository.half_life:
                repository.push(self)
                repository.next = time + rng.exponential(repository.push_period)

    def _version(self, repository: _Repository) -> list[int]:
        """The version to pull: the latest or an older one."""
        if self.rng.random() < self.p.p_latest or len(repository.versions) == 1:
            return repository.versions[-1]
        recent = repository.versions[-self.p.hist :][::-1]
        weights = np.arange(1, len(recent) + 1) ** -self.p.pin_alpha
        return recent[int(self.rng.choice(len(recent), p=weights / weights.sum()))]

    def make(self, name: str) -> Trace:
        p, rng = self.p, self.rng
        moments = self._moments()
        clients = [_Client(p.client_gb * 2**30) for _ in range(p.clients)]
        client_weights = np.arange(1, p.clients + 1) ** -p.client_alpha
        client_steps = np.cumsum(client_weights / client_weights.sum())
        requests: list[tuple[float, int, int]] = []
        quarter, killed = -1, p.kill_day <= 0
        steps = np.empty(0)
        for pull, (time, scan) in enumerate(moments):
            if int(time * 4) != quarter:
                quarter = int(time * 4)
                self._update(time)
                if not killed and time > p.kill_day:
                    for repository in sorted(self.repositories, key=lambda one: -one.weight)[: p.kill_top]:
                        repository.weight = 0.0
                    killed = True
                weights = np.array([repository.weight_at(time) for repository in self.repositories])
                if not weights.any():
                    raise TraceError("no repository is left: kill_top must be below repos")
                steps = np.cumsum(weights / weights.sum())
            if scan or rng.random() < p.onehit:
                image, cold = _Repository(self, time, 0.0).versions[0], True
            else:
                at = min(int(np.searchsorted(steps, rng.random())), len(self.repositories) - 1)
                image = self._version(self.repositories[at])
                cold = rng.random() < p.p_cold
            if cold:
                requested = [(key, 0.2 * at) for at, key in enumerate(image)]
            else:
                at = min(int(np.searchsorted(client_steps, rng.random())), p.clients - 1)
                requested = clients[at].pull(image, self.sizes)
            requests += ((time * DAY + delay, key, pull) for key, delay in requested)
        requests.sort(key=lambda request: request[0])
        trace = Trace(name, kinds=self.kinds, pull_count=len(moments))
        trace.sizes.extend(-(-int(np.ceil(max(size, 1.0))) // 1024) * 1024 for size in self.sizes)
        trace.times.extend(request[0] for request in requests)
        trace.keys.extend(request[1] for request in requests)
        trace.pulls.extend(request[2] for request in requests)
        return trace
