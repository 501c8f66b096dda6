"""Makes traces of a registry: repositories with tags that move, shared base layers, clients that keep what they pulled,
scans, and repositories that nobody wants any more.

The same name, seed and parameters give the same trace as long as numpy's generator does (it promises that only within
one version, NEP 19; the lock file has the version). The order of the draws is part of the format: do not tidy it.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from .trace import Kind, Trace, TraceError

DAY = 86400.0

# Layer sizes in bytes and layers per image, by quantile: container-chonks, a survey of Docker Hub and other
# registries of 2024, one image per name.
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
    """What a trace is made from. Times in days."""

    days: float = 60.0
    pulls: int = 90000
    """Before the nights thin them out (`diurnal`)."""
    repos: int = 3000
    new_per_day: float = 15.0
    alpha: float = 1.0
    """Zipf exponent of the popularity of repositories."""
    eph_frac: float = 0.7
    """Share of repositories whose popularity dies, with a half-life around `tau_med`."""
    tau_med: float = 15.0
    tau_sig: float = 0.8
    push_lo: float = 0.5
    """Days between two pushes to a repository, from here to `push_hi`."""
    push_hi: float = 45.0
    p_latest: float = 0.6
    pin_alpha: float = 1.3
    """Zipf exponent over the last `hist` versions, for pulls that are not of the latest."""
    hist: int = 8
    clients: int = 400
    client_gb: float = 40.0
    client_alpha: float = 0.8
    p_cold: float = 0.4
    """Share of pulls by clients that have nothing yet."""
    bases: int = 80
    base_alpha: float = 1.0
    base_period: float = 30.0
    onehit: float = 0.10
    """Share of pulls of an image that nobody pulls a second time."""
    scans: int = 1
    scan_images: int = 300
    scan_hours: float = 6.0
    diurnal: float = 0.5
    kill_day: float = 0.0
    """The day when the `kill_top` most popular repositories are given up; 0 for never."""
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
    """Make a trace; raises `TraceError` for parameters that make none."""
    if min(parameters.pulls, parameters.repos, parameters.clients, parameters.bases) < 1 or parameters.days <= 0:
        raise TraceError("pulls, repos, clients, bases and days must be above 0")
    try:
        return _Maker(parameters, seed).make(name)
    except ValueError as error:  # numpy's, where a number is out of its range
        raise TraceError(f"no trace can be made with these parameters: {error}") from error


class _Base:
    """A stack of base layers that is renewed now and then."""

    def __init__(self, maker: "_Maker") -> None:
        self.count = int(maker.rng.integers(1, 6))
        self.next = maker.rng.uniform(0, maker.p.base_period)
        self.first = np.exp(maker.rng.normal(np.log(30e6), 0.6))
        self.renew(maker)

    def renew(self, maker: "_Maker") -> None:
        self.layers = [maker.new(self.first, Kind.LAYER)]
        self.layers += [maker.new(maker.layer_size(), Kind.LAYER) for _ in range(self.count - 1)]


class _Repository:
    """Versions of an image, the latest last; each is the numbers of its index, manifest, config and layers."""

    def __init__(self, maker: "_Maker", time: float, weight: float) -> None:
        rng, p = maker.rng, maker.p
        total = round(float(np.interp(rng.random(), COUNT_QUANTILES, COUNTS)))
        self.base = maker.bases[int(rng.choice(len(maker.bases), p=maker.base_weights))] if rng.random() < 0.9 else None
        self.own_count = max(1, total - (self.base.count if self.base else 0))
        self.own: list[int] = []
        self.base_layers: list[int] = []
        self.start = time
        self.half_life = inf if rng.random() > p.eph_frac else rng.lognormal(np.log(p.tau_med), p.tau_sig)
        self.push_period = np.exp(rng.uniform(np.log(p.push_lo), np.log(p.push_hi)))
        self.next = time + rng.exponential(self.push_period)
        self.weight = weight
        self.versions: list[list[int]] = []
        self.push(maker)

    def push(self, maker: "_Maker") -> None:
        """A new version: the base as it is now, and own layers of which the last ones are new."""
        rng = maker.rng
        layers = self.base.layers if self.base else []
        if not self.own:
            self.own = [maker.new(maker.layer_size(), Kind.LAYER) for _ in range(self.own_count)]
        else:
            cut = int(rng.integers(0, len(self.own))) if len(self.own) > 1 else 0
            if rng.random() < 0.7:
                cut = max(cut, len(self.own) // 2)
            if layers is not self.base_layers and self.base:
                cut = 0
            self.own = self.own[:cut] + [maker.new(self._changed(maker, old), Kind.LAYER) for old in self.own[cut:]]
        self.base_layers = layers
        everything = [*layers, *self.own]
        index = maker.new(np.clip(rng.lognormal(np.log(1800), 0.5), 500, 10000), Kind.MANIFEST)
        manifest = maker.new(500 + 210 * len(everything), Kind.MANIFEST)
        config = maker.new(np.clip(rng.lognormal(np.log(7000), 0.6), 1000, 60000), Kind.CONFIG)
        self.versions.append([index, manifest, config, *everything])

    def _changed(self, maker: "_Maker", old: int) -> float:
        """Size of the layer that replaces another: mostly about the same."""
        if maker.rng.random() < 0.2:
            return maker.layer_size()
        return float(maker.sizes[old] * np.exp(maker.rng.normal(0, 0.05)))

    def weight_at(self, time: float) -> float:
        return self.weight * (2.0 ** (-(time - self.start) / self.half_life) if self.half_life < inf else 1.0)


class _Client:
    """A machine that keeps what it pulled, up to a size, the most recent."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self.used = 0.0
        self.held: OrderedDict[int, float] = OrderedDict()

    def pull(self, image: list[int], sizes: list[float]) -> list[tuple[int, float]]:
        """What it asks for, and how many seconds after the start; a tag's index always."""
        asked = [(image[0], 0.0)]
        if image[1] not in self.held:
            wanted = ((key, 0.2 + 0.2 * at) for at, key in enumerate(image[1:]))
            asked += [(key, delay) for key, delay in wanted if key not in self.held]
        for key in image[1:]:
            if key in self.held:
                self.held.move_to_end(key)
            else:
                self.held[key] = sizes[key]
                self.used += sizes[key]
        while self.used > self.capacity:
            self.used -= self.held.popitem(last=False)[1]
        return asked


class _Maker:
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
        """Days at which something is pulled, and whether a scan does it."""
        p, rng = self.p, self.rng
        days = np.sort(rng.random(p.pulls)) * p.days
        awake = rng.random(len(days)) < 1 - p.diurnal * (0.5 + 0.5 * np.cos(2 * np.pi * (days % 1)))
        scans = []
        for scan in range(p.scans):
            start = p.days * (0.45 + 0.5 * scan / max(1, p.scans))
            scans += [(start + rng.uniform(0, p.scan_hours / 24), True) for _ in range(p.scan_images)]
        return sorted([(float(day), False) for day in days[awake]] + scans)

    def _live(self, time: float) -> None:
        """What happens in the world every six hours."""
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
        """The latest, or one that somebody pinned."""
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
                self._live(time)
                if not killed and time > p.kill_day:
                    for repository in sorted(self.repositories, key=lambda one: -one.weight)[: p.kill_top]:
                        repository.weight = 0.0
                    killed = True
                weights = np.array([repository.weight_at(time) for repository in self.repositories])
                if not weights.any():
                    raise TraceError("nobody wants any repository: kill_top must be below repos")
                steps = np.cumsum(weights / weights.sum())
            if scan or rng.random() < p.onehit:
                image, cold = _Repository(self, time, 0.0).versions[0], True
            else:
                at = min(int(np.searchsorted(steps, rng.random())), len(self.repositories) - 1)
                image = self._version(self.repositories[at])
                cold = rng.random() < p.p_cold
            if cold:
                asked = [(key, 0.2 * at) for at, key in enumerate(image)]
            else:
                at = min(int(np.searchsorted(client_steps, rng.random())), p.clients - 1)
                asked = clients[at].pull(image, self.sizes)
            requests += ((time * DAY + delay, key, pull) for key, delay in asked)
        requests.sort(key=lambda request: request[0])
        trace = Trace(name, kinds=self.kinds, pull_count=len(moments))
        trace.sizes.extend(-(-int(np.ceil(max(size, 1.0))) // 1024) * 1024 for size in self.sizes)
        trace.times.extend(request[0] for request in requests)
        trace.keys.extend(request[1] for request in requests)
        trace.pulls.extend(request[2] for request in requests)
        return trace
