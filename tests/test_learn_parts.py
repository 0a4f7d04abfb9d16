"""Losses, samplers, MixUp and the domain head: each a part that any config can switch on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from mitoscan.learn.augment import gaussian_noise, mix_up
from mitoscan.learn.domains import DomainHead
from mitoscan.learn.losses import adaptive_binary_focal, categorical_focal, supervised_contrastive
from mitoscan.learn.sampling import HardExamples, class_and_domain_balanced

RNG = np.random.default_rng(2)


def test_focal_loss_is_cross_entropy_at_gamma_zero_and_forgives_what_is_right():
    torch.manual_seed(0)
    logits, truth = torch.randn(16, 8), torch.randint(8, (16,))
    target = F.one_hot(truth, 8).float()
    plain = categorical_focal(logits, target, torch.ones(8), 0.0)
    assert plain.item() == pytest.approx(F.cross_entropy(logits, truth).item(), rel=1e-5)
    weight = torch.linspace(0.5, 2, 8)
    weighted = F.cross_entropy(logits, truth, weight, reduction="sum") / 16
    assert categorical_focal(logits, target, weight, 0.0).item() == pytest.approx(weighted.item(), rel=1e-5)
    sure = 8 * target[:1]
    assert categorical_focal(sure, target[:1], torch.ones(8), 2.0) < 0.01 * F.cross_entropy(sure, truth[:1])
    unknown = torch.zeros(1, 8)
    assert categorical_focal(logits[:1], unknown, torch.ones(8), 2.0) == 0


def test_adaptive_focal_weighs_what_is_far_off_by_the_greater_gamma():
    logits = torch.tensor([-2.0, 1.0])  # p of the truth .12 and .73
    p = logits.sigmoid()
    expected = ((1 - p) ** torch.tensor([5.0, 3.0]) * -p.log()).mean()
    assert adaptive_binary_focal(logits, torch.ones(2)).item() == pytest.approx(expected.item(), rel=1e-5)
    even = adaptive_binary_focal(torch.zeros(1), torch.tensor([0.5]))
    moved = adaptive_binary_focal(torch.tensor([2.0]), torch.tensor([0.5]))
    assert even < moved  # a divided vote wants p = ½


def test_contrastive_loss_is_least_when_classes_lie_together():
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    mixed = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert supervised_contrastive(apart, labels) < 0.01
    assert supervised_contrastive(mixed, labels) > 5
    lonely = torch.randn(3, 4, requires_grad=True)
    loss = supervised_contrastive(lonely, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(lonely.grad).all()


def test_mixup_blends_pictures_and_labels_alike():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    targets = torch.arange(4.0)
    mixed, labels = mix_up(images, targets, 0.4, RNG)
    assert torch.allclose(mixed[:, 0, 0, 0], labels)
    assert not torch.equal(labels, targets)
    same, _ = mix_up(images, targets, 0.0, RNG)
    assert same is images


def test_noise_has_the_stated_size():
    images = torch.full((4, 3, 64, 64), 128.0)
    assert (gaussian_noise(images, 5.0, RNG) - images).std().item() == pytest.approx(5, rel=0.05)
    assert gaussian_noise(images, 0.0, RNG) is images


def test_each_domain_and_each_class_in_it_has_the_same_chance():
    domain = np.array(["big"] * 900 + ["small"] * 90 + ["normal only"] * 10)
    atypical = np.zeros(1000, bool)
    atypical[:90] = atypical[900:903] = True
    drawn = class_and_domain_balanced(atypical, domain, 30000, RNG)
    for name in np.unique(domain):
        members = domain[drawn] == name
        assert members.mean() == pytest.approx(1 / 3, abs=0.015)
        if name != "normal only":
            assert atypical[drawn][members].mean() == pytest.approx(0.5, abs=0.02)


def test_hard_examples_come_more_often():
    hard = HardExamples(100, share=0.5)
    for _ in range(20):
        hard.note(np.arange(100), np.where(np.arange(100) < 10, 5.0, 0.05))
    drawn = hard.mix_in(RNG.integers(100, size=10000), RNG)
    assert (drawn < 10).mean() == pytest.approx(0.5 * 0.1 + 0.5 * 50 / 54.5, abs=0.03)
    assert np.array_equal(HardExamples(100, 0.0).mix_in(drawn, RNG), drawn)


def test_the_domain_head_learns_the_domain_while_the_features_unlearn_it():
    torch.manual_seed(0)
    below, head = nn.Linear(4, 4), DomainHead(4, 2, strength=0.5)
    x, domain = torch.randn(32, 4), torch.randint(2, (32,))
    loss = head(below(x), domain)
    loss.backward()
    forward = [p.grad.clone() for p in below.parameters()]
    below.zero_grad()
    plain = F.cross_entropy(head.layers(below(x)), domain)
    plain.backward()
    for reversed_, straight in zip(forward, below.parameters(), strict=True):
        assert torch.allclose(reversed_, -0.5 * straight.grad, atol=1e-6)
    assert loss.item() == pytest.approx(plain.item())
