"""The update rule: golden trajectories computed apart from the code, its invariants, and bad input."""

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from companion.gestur.baselines import Ema
from companion.gestur.model import Erm, Gestur, GesturConfig, Network, adam, estimate, follow

SGD = [  # G, TE after, GE after; λ = 0.5, m = 0.9, rate 0.1, loss ½ (θ - c)ᵀ diag(1, 3) (θ - c), c = (1, -2)
    ((-0.500000000, 3.000000000), (0.050000000, -0.300000000), (0.005000000, -0.030000000)),
    ((-0.261785779, 1.270714674), (0.076178578, -0.427071467), (0.012117858, -0.069707147)),
    ((-0.249806073, 1.176161801), (0.101159185, -0.544687648), (0.021021991, -0.117205197)),
    ((-0.244092815, 1.087672608), (0.125568467, -0.653454908), (0.031476638, -0.170830168)),
    ((-0.239488080, 1.005614014), (0.149517275, -0.754016310), (0.043280702, -0.229148782)),
    ((-0.235116358, 0.929652681), (0.173028911, -0.846981578), (0.056255523, -0.290932062)),
]
ADAM = [
    ((-0.500000000, 3.000000000), (0.099999998, -0.100000000), (0.010000000, -0.010000000)),
    ((0.570110279, 1.829889704), (0.088210814, -0.195960324), (0.017821081, -0.028596032)),
    ((0.076047163, 1.441271998), (0.072764340, -0.288840178), (0.023315407, -0.054620447)),
    ((-0.194224149, 1.290730081), (0.074872062, -0.379585754), (0.028471073, -0.087116978)),
    ((-0.268715555, 1.208780868), (0.094220340, -0.468776477), (0.035045999, -0.125282928)),
    ((-0.254167474, 1.143297333), (0.125461023, -0.556696190), (0.044087502, -0.168424254)),
]


class Point(nn.Module):
    """A featurizer that is its own two parameters."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return self.at


def valley_loss(network, batches):
    gap = network(None) - torch.tensor([1.0, -2.0], dtype=torch.float64)
    return 0.5 * (torch.tensor([1.0, 3.0], dtype=torch.float64) * gap**2).sum()


@pytest.mark.parametrize(
    ("golden", "optimizer"),
    [(SGD, lambda g: torch.optim.SGD(g, lr=0.1)), (ADAM, lambda g: torch.optim.Adam(g, lr=0.1))],
    ids=["sgd", "adam"],
)
def test_golden_trajectory(golden, optimizer):
    gestur = Gestur(
        Point(), nn.Identity(), optimizer, GesturConfig(lam=0.5, decay=0.9), objective=valley_loss
    )
    for gradient, task, expert in golden:
        gestur.update([])
        at = gestur.network.featurizer.at
        for found, wanted in ((at.grad, gradient), (at, task), (gestur.expert.featurizer.at, expert)):
            assert torch.allclose(
                found.detach(), torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0
            )


class Convolutions(nn.Module):
    """Convolutions with BatchNorm, and a parameter that no loss reaches."""

    def __init__(self, layers=2):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(
            part for k in range(layers)
            for part in (nn.Conv2d(3 if k == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())))  # fmt: skip
        self.idle = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.body(x).mean((2, 3))


def images(k):
    g = torch.Generator().manual_seed(k)
    return [(torch.randn(4, 3, 6, 6, generator=g), torch.randint(0, 3, (4,), generator=g)) for _ in range(2)]


def one_by_one(network, expert, anchor, optimizer, config, batches):
    """The update (1) to (6) written out for one tensor after the other."""

    def length(tensors):
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))

    def ratio(n, r):
        return config.lam * n / r if r > 0 else torch.zeros_like(r)

    optimizer.zero_grad(set_to_none=True)
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    nn.functional.cross_entropy(network(x), y).backward()
    with torch.no_grad():
        theirs = dict(anchor.named_parameters())
        pulled = {name: p for name, p in network.named_parameters()
                  if p.requires_grad and (config.scope == "all" or name.startswith("featurizer"))}  # fmt: skip
        gaps = {name: p - theirs[name] for name, p in pulled.items()}
        everything = length([p.grad for p in network.parameters() if p.grad is not None])
        factors = {}
        for name, p in pulled.items():
            if config.norm == "global":
                factors[name] = ratio(everything, length(gaps.values()))
            elif config.norm == "tensor":
                size = length([p.grad]) if p.grad is not None else torch.zeros(())
                factors[name] = ratio(size, torch.linalg.vector_norm(gaps[name]))
            else:
                factors[name] = config.lam
        for name, p in pulled.items():
            if p.grad is None:
                p.grad = gaps[name] * factors[name]
            else:
                p.grad.add_(gaps[name] * factors[name])
                if config.halve:
                    p.grad.mul_(0.5)
        optimizer.step()
        for p, q in zip(network.parameters(), expert.parameters(), strict=True):
            q.mul_(config.decay).add_(p, alpha=1 - config.decay)
        for mine, other in zip(expert.buffers(), network.buffers(), strict=True):
            mine.copy_(other)


def momentum(groups):
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("optimizer", [momentum, lambda g: torch.optim.Adam(g, lr=1e-2), adam(1e-2)],
                         ids=["sgd", "adam", "fused"])  # fmt: skip
@pytest.mark.parametrize("switches", [{}, {"norm": "tensor"}, {"norm": "none", "halve": False},
                                      {"scope": "all", "anchor": "start"}], ids=str)  # fmt: skip
def test_the_update_of_whole_lists_is_bit_by_bit_that_of_single_tensors(optimizer, switches):
    config = GesturConfig(lam=0.3, decay=0.9, **switches)
    gestur = Gestur(Convolutions(), nn.Linear(8, 3), optimizer, config)
    network = copy.deepcopy(gestur.network)
    start, expert = copy.deepcopy(network), copy.deepcopy(gestur.expert)
    parts = {"featurizer": network.featurizer, "head": network.head}
    plain = optimizer([{"name": name, "params": list(part.parameters())} for name, part in parts.items()])
    for k in range(7):
        # between two steps a layer is frozen, and later trained again; buffers move by hand
        for one in (network, gestur.network):
            one.featurizer.body[0].requires_grad_(k not in (3, 4))
            one.featurizer.body[1].running_mean.add_(0.01 * k)
        anchor = start if config.anchor == "start" else expert
        one_by_one(network, expert, anchor, plain, config, images(k))
        gestur.update(images(k))
        for ours, wanted in ((gestur.network, network), (gestur.expert, expert)):
            assert all(torch.equal(v, wanted.state_dict()[key]) for key, v in ours.state_dict().items())
    assert not same(gestur.network, gestur.expert)


def test_the_number_of_operations_does_not_grow_with_the_number_of_tensors():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is not torch.ops.aten.detach.default:  # a view, which computes nothing
                self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    found = []
    for layers in (2, 20):
        gestur = Gestur(Convolutions(layers), nn.Linear(8, 3), sgd, GesturConfig(lam=0.3, decay=0.9))
        gestur.update(images(0))
        gestur.optimizer.zero_grad()
        gestur.objective(images(1)).backward()
        gestur.network.featurizer.idle.grad = torch.zeros(3)
        with Count() as count:
            gestur.before_step()
            gestur.after_step()
        found.append(count.names)
    assert found[0] == found[1]
    assert len(found[0]) < 30


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own copy of quantised tensors
def test_weights_of_other_types_are_kept_and_frozen_ones_are_not_rounded():
    """A quantised backbone's integers and scales next to a trained layer; a second trained layer in float64."""

    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            self.levels = nn.Parameter(torch.randint(0, 255, (5, 4), dtype=torch.uint8), requires_grad=False)
            self.scale = nn.Parameter(torch.rand(5, 4).half(), requires_grad=False)
            self.eight = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
            self.fixed = nn.Parameter(torch.rand(4), requires_grad=False)
            quantised = torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8)
            self.register_buffer("quantised", quantised)
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))
            self.trained, self.precise = nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, x):
            self.seen += 1
            weight = self.levels.float() / 255 * self.scale.float()
            hidden = self.trained(x @ weight + self.fixed + self.eight.float() + self.quantised.dequantize())
            return self.precise(hidden.double()).float()

    torch.manual_seed(0)
    for method in (Gestur, Ema):
        algorithm = method(Stored(), nn.Linear(4, 3), lambda g: torch.optim.Adam(g, lr=1e-2))
        before = {k: v.clone() for k, v in algorithm.network.featurizer.state_dict().items()}
        for k in range(30):
            algorithm.update(batches(k))
        ours, average = algorithm.network.featurizer, algorithm.predictor.featurizer
        assert int(average.seen) == 30
        for name in ("levels", "eight", "quantised", *(("scale", "fixed") if method is Gestur else ())):
            found = getattr(average, name)
            assert found.dtype == before[name].dtype
            assert torch.equal(found.float() if not found.is_quantized else found.int_repr(),
                               before[name].float() if not found.is_quantized else before[name].int_repr())  # fmt: skip
        for layer in ("trained", "precise"):
            old, new, mean = (
                before[f"{layer}.weight"],
                getattr(ours, layer).weight.detach(),
                getattr(average, layer).weight,
            )
            assert 0 < float((mean - old).norm()) < float((new - old).norm())


def test_a_weight_unfrozen_later_is_averaged_from_then_on_and_one_frozen_later_still():
    featurizer, head = net()
    featurizer[0].requires_grad_(False)
    gestur = Gestur(featurizer, head, sgd, GesturConfig(lam=0.2, decay=0.9))
    late = gestur.network.featurizer[0].weight
    gestur.update(batches(0))
    assert torch.equal(late, gestur.expert.featurizer[0].weight)
    featurizer[0].requires_grad_(True)
    gestur.optimizer.add_param_group({"params": list(featurizer[0].parameters())})
    start = late.detach().clone()
    gestur.update(batches(1))
    assert torch.allclose(gestur.expert.featurizer[0].weight, 0.9 * start + 0.1 * late, atol=1e-7)
    assert not torch.equal(start, late)
    before = gestur.expert.featurizer[0].weight.clone()
    featurizer[0].requires_grad_(False)
    state = copy.deepcopy(gestur.state_dict())
    gestur.update(batches(2))
    assert torch.allclose(gestur.expert.featurizer[0].weight, 0.9 * before + 0.1 * late, atol=1e-7)
    featurizer, head = net(seed=9)
    featurizer[0].requires_grad_(False)
    resumed = Gestur(featurizer, head, sgd, GesturConfig(lam=0.2, decay=0.9))
    resumed.optimizer.add_param_group({"params": list(featurizer[0].parameters())})
    resumed.load_state_dict(state)
    resumed.update(batches(2))
    assert same(resumed, gestur)


def test_a_copy_of_a_training_goes_on_by_itself():
    one = Gestur(*net(), adam(1e-2), GesturConfig(lam=0.2, decay=0.9))
    one.update(batches(0))
    two, before = copy.deepcopy(one), [p.clone() for p in one.parameters()]
    two.update(batches(1))
    assert all(torch.equal(p, q) for p, q in zip(before, one.parameters(), strict=True))
    one.update(batches(1))
    assert same(one, two)


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    featurizer = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    return featurizer, nn.Linear(4, 3).to(dtype)


def batches(k, dtype=torch.float32):
    g = torch.Generator().manual_seed(k)
    return [
        (torch.randn(6, 5, generator=g).to(dtype), torch.randint(0, 3, (6,), generator=g)) for _ in range(3)
    ]


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1)


def accelerator(**options):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    return Accelerator(cpu=True, **options)


def same(a, b, tolerance=0.0):
    return all(
        torch.allclose(p, q, atol=tolerance, rtol=0)
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )


def test_lambda_zero_is_erm_with_halved_featurizer_gradients():
    gestur = Gestur(*net(), sgd, GesturConfig(lam=0.0))
    erm = Erm(
        *net(),
        lambda g: torch.optim.SGD([{**part, "lr": 0.1 if part["name"] == "head" else 0.05} for part in g]),
    )
    for k in range(5):
        gestur.update(batches(k))
        erm.update(batches(k))
    assert same(gestur.network, erm.network, 1e-7)


def test_under_adam_the_half_cancels_and_gestur_at_zero_is_ema_of_erm():
    def exact(groups):
        return torch.optim.Adam(groups, lr=1e-2, eps=0.0)

    gestur = Gestur(*net(dtype=torch.float64), exact, GesturConfig(lam=0.0, decay=0.9))
    ema = Ema(*net(dtype=torch.float64), exact, decay=0.9)
    for k in range(10):
        gestur.update(batches(k, torch.float64))
        ema.update(batches(k, torch.float64))
    assert same(gestur.network, ema.network, 1e-10)
    assert same(gestur.predictor, ema.predictor, 1e-10)


def test_without_memory_the_experts_are_one_and_nothing_is_estimated():
    gestur = Gestur(*net(), sgd, GesturConfig(lam=1.0, decay=0.0))
    for k in range(3):
        gestur.update(batches(k))
        assert same(gestur.network, gestur.expert, 1e-7)


def test_recursion_of_the_difference_and_size_of_the_estimate():
    config = GesturConfig(lam=0.3, decay=0.9)
    gestur = Gestur(*net(dtype=torch.float64), adam(1e-2), config)
    pairs, gap = gestur.pairs(), None
    for k in range(20):
        before = [p.detach().clone() for p, _ in pairs]
        gestur.update(batches(k, torch.float64))
        moved = [p.detach() - old for (p, _), old in zip(pairs, before, strict=True)]
        gap = [0.9 * ((0 if gap is None else g) + m) for g, m in zip(gap or moved, moved, strict=True)]
        assert all(
            torch.allclose(p.detach() - q, g, atol=1e-12) for (p, q), g in zip(pairs, gap, strict=True)
        )
    gestur.network.zero_grad()
    gestur.objective(batches(99, torch.float64)).backward()
    grads = [p.grad for p in gestur.network.parameters()]
    found = torch.cat([part.flatten() for part in estimate(gestur.network.parameters(), pairs, config)])
    flat = torch.cat([(p.detach() - q).flatten() for p, q in pairs])
    size = torch.cat([g.flatten() for g in grads]).norm()
    assert float(found.norm() / size) == pytest.approx(0.3, abs=1e-12)
    assert float(torch.cosine_similarity(found, flat, dim=0)) == pytest.approx(1.0, abs=1e-12)


def test_gradients_that_reach_the_optimizer():
    gestur = Gestur(*net(dtype=torch.float64), adam(1e-2), GesturConfig(lam=0.3, decay=0.9))
    for k in range(4):
        gestur.update(batches(k, torch.float64))
    pairs = gestur.pairs()
    plain = torch.autograd.grad(
        gestur.objective(batches(7, torch.float64)), list(gestur.network.parameters())
    )
    by_name = dict(zip([n for n, _ in gestur.network.named_parameters()], plain, strict=True))
    for p, g in zip(gestur.network.parameters(), plain, strict=True):
        p.grad = g.clone()
    wanted = estimate(gestur.network.parameters(), pairs, gestur.config)
    gestur.before_step()
    for (p, _), g in zip(pairs, wanted, strict=True):
        name = next(n for n, q in gestur.network.named_parameters() if q is p)
        assert torch.allclose(p.grad, (by_name[name] + g) / 2, atol=1e-14)
    for name, p in gestur.network.head.named_parameters():
        assert torch.equal(p.grad, by_name[f"head.{name}"])  # the classifier's gradient is untouched


def test_first_step_estimates_nothing_and_is_finite():
    gestur = Gestur(*net(), sgd, GesturConfig(lam=5.0))
    erm = Gestur(*net(), sgd, GesturConfig(lam=0.0))
    gestur.update(batches(0))
    erm.update(batches(0))
    assert same(gestur.network, erm.network)
    assert all(torch.isfinite(p).all() for p in gestur.parameters())


def test_a_featurizer_parameter_without_a_loss_gradient_gets_the_estimate_unhalved():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(5, 4), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    gestur = Gestur(Unused(), nn.Linear(4, 3), sgd, GesturConfig(lam=0.5, decay=0.5))
    gestur.update(batches(0))
    with torch.no_grad():
        gestur.network.featurizer.idle.add_(1.0)
    gestur.optimizer.zero_grad()
    gestur.objective(batches(1)).backward()
    pairs = gestur.pairs()
    wanted = estimate(gestur.network.parameters(), pairs, gestur.config)
    gestur.before_step()
    index = next(k for k, (p, _) in enumerate(pairs) if p is gestur.network.featurizer.idle)
    assert torch.allclose(gestur.network.featurizer.idle.grad, wanted[index])
    assert float(wanted[index].norm()) > 0


def test_the_expert_is_a_closed_form_average_outside_the_optimizer():
    m = 0.95
    gestur = Gestur(*net(dtype=torch.float64), adam(1e-2), GesturConfig(lam=0.1, decay=m))
    first = [p.detach().clone() for p in gestur.network.parameters()]
    path = []
    for k in range(100):
        gestur.update(batches(k, torch.float64))
        path.append([p.detach().clone() for p in gestur.network.parameters()])
    n = len(path)
    for j, found in enumerate(gestur.expert.parameters()):
        wanted = m**n * first[j] + (1 - m) * sum(m ** (n - 1 - k) * path[k][j] for k in range(n))
        assert torch.allclose(found, wanted, atol=1e-12)
        assert not found.requires_grad
    held = {id(p) for group in gestur.optimizer.param_groups for p in group["params"]}
    assert held.isdisjoint(id(p) for p in gestur.expert.parameters())


def test_follow_equals_torch_averaged_model():
    network = Network(*net())
    average = copy.deepcopy(network)
    theirs = torch.optim.swa_utils.AveragedModel(network, avg_fn=lambda avg, p, n: 0.9 * avg + 0.1 * p)
    theirs.update_parameters(network)  # torch's first call copies
    for _ in range(5):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        follow(average, network, 0.9)
        theirs.update_parameters(network)
    assert same(average, theirs.module, 1e-6)


def test_batch_norm_statistics_never_move():
    gestur = Gestur(*net(), adam(1e-2))
    before = {k: v.clone() for k, v in gestur.network.named_buffers()}
    for k in range(3):
        gestur.update(batches(k))
    assert all(torch.equal(v, before[k]) for k, v in gestur.network.named_buffers())
    assert gestur.network.featurizer[1].weight.grad.abs().sum() > 0  # its affine part is trained


def amsgrad(groups):
    return torch.optim.Adam(groups, lr=1e-2, amsgrad=True)


@pytest.mark.parametrize("accelerated", [False, True], ids=["plain", "accelerate"])
@pytest.mark.parametrize("optimizer", [sgd, adam(1e-2), amsgrad], ids=["sgd", "fused", "adam"])
def test_a_resumed_run_is_the_same_run(optimizer, accelerated):
    """With accelerate in float32, the scaler of float16 is off."""
    config = GesturConfig(lam=0.2, decay=0.9)

    def made(seed):
        return Gestur(
            *net(seed), optimizer, config, dropout=0.5, accelerator=accelerator() if accelerated else None
        )

    one = made(0)
    torch.manual_seed(5)
    for k in range(3):
        one.update(batches(k))
    torch.save(one.state_dict(), file := io.BytesIO())
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for k in range(3, 6):
        one.update(batches(k))
    two = made(9)
    torch.manual_seed(77)
    two.load_state_dict(state)
    for k in range(3, 6):
        two.update(batches(k))
    assert two.steps == 6
    assert same(one, two)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_under_accelerate_the_update_is_the_same_method(precision):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    config = GesturConfig(lam=0.2, decay=0.9)
    plain = Gestur(*net(), adam(1e-2), config)
    prepared = Gestur(
        *net(), adam(1e-2), config, accelerator=Accelerator(mixed_precision=precision, cpu=True)
    )
    for k in range(4):
        plain.update(batches(k))
        prepared.update(batches(k))
    assert same(plain.network, prepared.network, 1e-7 if precision == "no" else 2e-2)
    assert same(plain.expert, prepared.expert, 1e-7 if precision == "no" else 2e-2)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_loss_scaling_overflow_moves_nothing_and_resumes_bit_by_bit(fused):
    """float16's scaler on the CPU: a batch that overflows is as if it had not been, for both experts."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def adam_(groups):
        return torch.optim.Adam(groups, lr=1e-2, fused=fused)

    def scaled():
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        return Gestur(*net(), adam_, GesturConfig(lam=0.2, decay=0.9), accelerator=accelerator)

    plain, one = Gestur(*net(), adam_, GesturConfig(lam=0.2, decay=0.9)), scaled()
    for k in range(3):
        one.update(batches(k))
        plain.update(batches(k))
    before = [p.clone() for p in one.parameters()]
    one.update([(x * float("inf"), y) for x, y in batches(9)])
    assert all(torch.equal(p, q) for p, q in zip(before, one.parameters(), strict=True))
    assert (one.steps, one.scaler.get_scale()) == (
        3,
        2.0**10,
    )  # grew after three steps, fell after the fourth
    state = copy.deepcopy(one.state_dict())
    for k in range(3, 6):
        one.update(batches(k))
        plain.update(batches(k))
    assert same(one.network, plain.network, 1e-6)
    assert same(one.expert, plain.expert, 1e-6)
    two = scaled()
    two.load_state_dict(state)
    for k in range(3, 6):
        two.update(batches(k))
    assert same(one, two)
    assert two.scaler.state_dict() == one.scaler.state_dict()


def test_around_a_module_that_takes_token_dictionaries():
    """Nothing about images: a featurizer of a dictionary, a loss of one's own, batches of any kind."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.cell = nn.Embedding(11, 6), nn.GRU(6, 5, batch_first=True)

        def forward(self, tokens):
            return self.cell(self.table(tokens["input_ids"]))[0][:, -1]

    def margin(network, domains):
        return torch.stack([nn.functional.multi_margin_loss(network(x), y) for x, y in domains]).mean()

    torch.manual_seed(0)
    ids, labels = torch.randint(0, 11, (8, 4)), torch.arange(8) % 2
    domains = [({"input_ids": ids[:4]}, labels[:4]), ({"input_ids": ids[4:]}, labels[4:])]
    gestur = Gestur(
        Words(), nn.Linear(5, 2), adam(3e-2), GesturConfig(lam=0.1, decay=0.5), objective=margin, dropout=0.1
    )
    losses = [float(gestur.update(domains)["loss"]) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    assert gestur.predict({"input_ids": ids}).argmax(1).tolist() == labels.tolist()


def _half(folder):
    """One of two processes: every batch's own half, the gradients are averaged by accelerate."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # the fork brings the parent's
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    gestur = Gestur(*net(), adam(1e-2), GesturConfig(lam=0.2, decay=0.9), accelerator=accelerator)
    for k in range(3):
        gestur.update([(x[rank::2], y[rank::2]) for x, y in batches(k)])
    torch.save([[p.detach() for p in m.parameters()] for m in (gestur.network, gestur.expert)],
               f"{folder}/{rank}.pt")  # fmt: skip


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    from accelerate import debug_launcher

    debug_launcher(_half, (str(tmp_path),), num_processes=2)
    plain = Gestur(*net(), adam(1e-2), GesturConfig(lam=0.2, decay=0.9))
    for k in range(3):
        plain.update(batches(k))
    for rank in (0, 1):
        for found, wanted in zip(
            torch.load(tmp_path / f"{rank}.pt"), (plain.network, plain.expert), strict=True
        ):
            for p, q in zip(found, wanted.parameters(), strict=True):
                assert torch.allclose(p, q, atol=1e-6)


def test_scaled_gradients_give_the_scaled_step():
    """A loss scaler multiplies every gradient; (3) is proportional to ‖g‖, so the estimate scales along."""
    found = []
    for scale in (1.0, 1024.0):
        gestur = Gestur(*net(dtype=torch.float64), sgd, GesturConfig(lam=0.4, decay=0.9))
        gestur.update(batches(0, torch.float64))
        gestur.optimizer.zero_grad()
        (scale * gestur.objective(batches(1, torch.float64))).backward()
        gestur.before_step()
        found.append(torch.cat([p.grad.flatten() for p in gestur.network.parameters()]) / scale)
    assert torch.allclose(*found, atol=1e-13)


def test_switches():
    """norm="none" is λ d; norm="tensor" has ratio λ in every tensor; scope="all" pulls the head; anchor="start" stays."""
    for norm, scope, anchor in (("none", "featurizer", "expert"), ("tensor", "all", "start")):
        config = GesturConfig(lam=0.3, decay=0.9, norm=norm, scope=scope, anchor=anchor)
        gestur = Gestur(*net(dtype=torch.float64), adam(1e-2), config)
        start = [p.detach().clone() for p in gestur.network.parameters()]
        for k in range(3):
            gestur.update(batches(k, torch.float64))
        pairs = gestur.pairs()
        assert len(pairs) == (8 if scope == "all" else 6)
        if anchor == "start":
            assert all(torch.equal(q, s) for (_, q), s in zip(pairs, start, strict=True))
        gestur.optimizer.zero_grad()
        gestur.objective(batches(3, torch.float64)).backward()
        for (p, q), g in zip(pairs, estimate(gestur.network.parameters(), pairs, config), strict=True):
            if norm == "none":
                assert torch.allclose(g, 0.3 * (p.detach() - q), atol=1e-15)
            elif float(p.grad.norm()) > 0:
                assert math.isclose(float(g.norm() / p.grad.norm()), 0.3, rel_tol=1e-9)


def test_task_expert_predicts_when_asked():
    gestur = Gestur(*net(), adam(1e-1), GesturConfig(predict="task", decay=0.99))
    for k in range(3):
        gestur.update(batches(k))
    x = batches(0)[0][0]
    assert torch.equal(gestur.predict(x), gestur.network.eval()(x))
    assert not torch.allclose(gestur.predict(x), gestur.expert(x), atol=1e-3)


def test_bad_input_is_one_sentence():
    featurizer, head = net()
    with pytest.raises(
        ValueError, match="split into two torch modules, featurizer and head; got Sequential and int"
    ):
        Gestur(featurizer, 3)
    for method in (Gestur, Erm):
        with pytest.raises(
            ValueError, match=r"needs a declared split .* featurizer and head; got Sequential and no head"
        ):
            method(nn.Sequential(featurizer, head))
    with pytest.raises(ValueError, match=r"lam is -1; it scales a gradient"):
        GesturConfig(lam=-1)
    for lam in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"lam is {lam}; it scales a gradient and is a finite number"):
            GesturConfig(lam=lam)
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        GesturConfig(decay=1.5)
    with pytest.raises(ValueError, match="norm is 'layer'; choose global, tensor, none"):
        GesturConfig(norm="layer")
    with pytest.raises(ValueError, match="featurizer and head share a parameter; every parameter belongs"):
        Gestur(featurizer, nn.Sequential(featurizer[3], nn.Linear(4, 3)))
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=r"the weights are b?float16, which loses small steps"):
            Gestur(*net(dtype=dtype))
    sharded = SimpleNamespace(distributed_type="FSDP", num_processes=2)
    with pytest.raises(ValueError, match="accelerate runs as FSDP, which cuts the weights up"):
        Gestur(featurizer, head, accelerator=sharded)
    with pytest.raises(
        ValueError, match=r"gradient_accumulation_steps is 4; one update is one step .* must be 1"
    ):
        Gestur(featurizer, head, accelerator=accelerator(gradient_accumulation_steps=4))
    with pytest.raises(ValueError, match="nothing can be trained"):
        Gestur(featurizer.requires_grad_(False), head.requires_grad_(False))
