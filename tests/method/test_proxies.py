"""Accumulators against torch's cells and values computed by hand; class prompts against plain loops."""

import pytest
import torch
import torch.nn.functional as F

from vptsp_core.method.accumulators import (
    AttentionAccumulator,
    EMAAccumulator,
    GRUAccumulator,
    LSTMAccumulator,
    RNNAccumulator,
    make_accumulator,
)
from vptsp_core.method.class_prompts import ClassPrompts
from vptsp_core.method.config import RunConfig
from vptsp_core.method.proxies import SemanticProxies

D = 5


def as_torch_cell(gru):
    """Return a torch.nn.GRUCell with the same weights: (1 - z) n + z h, with n = tanh(W x + r (U h))."""
    cell = torch.nn.GRUCell(D, D).double()
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([gru.W_r, gru.W_z, gru.W_n], dim=1).T)
        cell.weight_hh.copy_(torch.cat([gru.U_r, gru.U_z, gru.U_n], dim=1).T)
        cell.bias_ih.copy_(torch.cat([gru.b_r, gru.b_z, gru.b_n]))
        cell.bias_hh.zero_()
    return cell


def gru(**options):
    torch.manual_seed(0)
    made = GRUAccumulator(D, **options).double()
    with torch.no_grad():
        for bias in (made.b_z, made.b_r, made.b_n):
            bias.normal_()
    return made


def test_released_tanh_gru_is_torchs_gru_cell_fed_sample_by_sample():
    made = gru(activation="tanh", semantics="released")
    p, state = torch.randn(3, 4, D).double(), F.normalize(torch.randn(3, D).double(), dim=-1)
    cell, expected = as_torch_cell(made), state
    for i in range(4):
        expected = cell(p[:, i], expected)
    assert torch.allclose(made(p, state), expected, atol=1e-12)


def test_paper_gru_exchanges_z_and_normalises_after_every_sample():
    made = gru(activation="relu", semantics="paper")
    p, state = torch.randn(2, 3, D).double(), F.normalize(torch.randn(2, D).double(), dim=-1)
    expected = []
    for row in range(2):
        h = state[row]
        for i in range(3):
            x = p[row, i]
            z = torch.sigmoid(x @ made.W_z + h @ made.U_z + made.b_z)
            r = torch.sigmoid(x @ made.W_r + h @ made.U_r + made.b_r)
            n = torch.relu(x @ made.W_n + r * (h @ made.U_n) + made.b_n)
            h = (1 - z) * h + z * n
            h = h / h.norm()
        expected.append(h)
    assert torch.allclose(made(p, state), torch.stack(expected), atol=1e-12)


@pytest.mark.parametrize("semantics", ["released", "paper"])
def test_dropout_acts_on_every_new_state_in_training_only(semantics):
    made = gru(semantics=semantics, dropout=0.5)
    p, state = torch.randn(4, 2, D).double(), torch.randn(4, D).double()
    torch.manual_seed(1)
    found = made.train()(p, state)
    torch.manual_seed(1)
    made.eval()
    for i in range(2):
        state = F.dropout(made(p[:, i : i + 1], state), 0.5)
        state = state if semantics == "released" else F.normalize(state, dim=-1)
    torch.testing.assert_close(found, state, rtol=0, atol=1e-12)
    assert (found == 0).any()


def recurrent(kind, cell_kind, semantics):
    """Return one of our accumulators, and torch's cell with the same weights."""
    torch.manual_seed(5)
    made, cell = kind(D, semantics=semantics).double(), cell_kind(D, D).double()
    with torch.no_grad():
        made.b.normal_()
        cell.weight_ih.copy_(made.W.T)
        cell.weight_hh.copy_(made.U.T)
        cell.bias_ih.copy_(made.b)
        cell.bias_hh.zero_()
    return made, cell


@pytest.mark.parametrize("semantics", ["released", "paper"])
def test_rnn_is_torchs_rnn_cell(semantics):
    made, cell = recurrent(RNNAccumulator, torch.nn.RNNCell, semantics)
    p, state = torch.randn(3, 4, D).double(), F.normalize(torch.randn(3, D).double(), dim=-1)
    expected = state
    for i in range(4):
        expected = cell(p[:, i], expected)
        expected = expected if semantics == "released" else F.normalize(expected, dim=-1)
    assert torch.allclose(made(p, state), expected, atol=1e-12)


@pytest.mark.parametrize("semantics", ["released", "paper"])
def test_lstm_is_torchs_lstm_cell_and_its_cell_is_not_normalised(semantics):
    made, cell = recurrent(LSTMAccumulator, torch.nn.LSTMCell, semantics)
    p, state = torch.randn(3, 4, D).double(), F.normalize(torch.randn(3, D).double(), dim=-1)
    hidden, memory = state, torch.randn(3, D).double()
    found = made(p, state, memory)
    for i in range(4):
        hidden, memory = cell(p[:, i], (hidden, memory))
        hidden = hidden if semantics == "released" else F.normalize(hidden, dim=-1)
    assert torch.allclose(found[0], hidden, atol=1e-12) and torch.allclose(found[1], memory, atol=1e-12)


def test_the_lstms_cell_is_kept_per_class_and_without_gradient():
    torch.manual_seed(6)
    made = LSTMAccumulator(3, semantics="released")
    proxies = SemanticProxies(4, 3, accumulator=made, alpha=0.5)
    assert torch.equal(proxies.cell, torch.zeros(4, 3)) and "cell" in proxies.state_dict()
    state, cell = proxies.state.clone(), torch.zeros(4, 3)
    for classes in (torch.tensor([2, 0]), torch.tensor([0, 3])):
        p = F.normalize(torch.randn(4, 3), dim=-1)
        rows, cell[classes] = (t.detach() for t in made(p.view(2, 2, 3), state[classes], cell[classes]))
        state[classes] = F.normalize(rows, dim=-1)
        proxies(p, classes).sum().backward()  # also for the second batch, when the first one's graph is gone
        assert torch.allclose(proxies.cell, cell) and torch.allclose(proxies.state, state)
        assert not proxies.cell.requires_grad
    assert torch.equal(proxies.cell[1], torch.zeros(3)) and (cell[0] != 0).all()


def test_attention_is_torchs_multi_head_attention_of_one_head_over_the_whole_batch():
    torch.manual_seed(7)
    made, theirs = AttentionAccumulator(D).double(), torch.nn.MultiheadAttention(D, 1, bias=False).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([made.W_q, made.W_k, made.W_v], dim=1).T)
        theirs.out_proj.weight.copy_(torch.eye(D))
    p, state = torch.randn(3, 4, D).double(), torch.randn(3, D).double()
    expected, _ = theirs(state, p.view(12, D), p.view(12, D))
    assert torch.allclose(made(p, state), expected, atol=1e-12)


def test_every_name_makes_its_accumulator():
    kinds = dict(gru=GRUAccumulator, gru_tanh=GRUAccumulator, ema=EMAAccumulator, rnn=RNNAccumulator,
                 lstm=LSTMAccumulator, attention=AttentionAccumulator)  # fmt: skip
    for name, kind in kinds.items():
        made = make_accumulator(RunConfig(accumulator=name, embed_dim=D, semantics="paper", gru_dropout=0.25))
        assert type(made) is kind and getattr(made, "released", False) is False
        if kind is GRUAccumulator:
            assert made.activation is (torch.tanh if name == "gru_tanh" else torch.relu) and made.dropout.p == 0.25


def test_weights_of_every_gate_start_xavier_uniform():
    torch.manual_seed(8)
    bound = (6 / 128) ** 0.5
    for weight in LSTMAccumulator(64, semantics="released").U.detach().chunk(4, dim=1):
        assert 0.95 * bound < weight.abs().max() <= bound


def test_ema_by_hand():
    state, p = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    released = EMAAccumulator(0.8, semantics="released")(p, state)
    assert torch.allclose(released, torch.tensor([[0.9, 0.1]]))  # 0.8 (1, 0) + 0.2 (0.5, 0.5)
    paper = EMAAccumulator(0.8, semantics="paper")(p, state)
    first = torch.tensor([1.0, 0.2]) / 1.04**0.5
    second = first + torch.tensor([0.2, 0.0])
    assert torch.allclose(paper, (second / second.norm())[None])


def test_state_moves_only_for_the_batchs_classes_and_without_gradient():
    torch.manual_seed(1)
    proxies = SemanticProxies(4, 3, accumulator=EMAAccumulator(0.5, semantics="released"), alpha=0.3)
    before = proxies.state.clone()
    assert torch.allclose(before.norm(dim=-1), torch.ones(4))
    p = F.normalize(torch.randn(4, 3), dim=-1).requires_grad_()
    classes = torch.tensor([2, 0])
    q = proxies(p, classes)
    rows = F.normalize(0.5 * before[classes] + 0.5 * p.view(2, 2, 3).mean(1), dim=-1)
    assert torch.allclose(proxies.state[classes], rows) and torch.equal(proxies.state[[1, 3]], before[[1, 3]])
    assert torch.allclose(q, 0.7 * proxies.state + 0.3 * proxies.bias)
    q.square().sum().backward()
    assert p.grad.abs().sum() > 0 and (proxies.bias.grad.abs().sum(1) > 0).all()
    assert not proxies.state.requires_grad
    q2 = proxies(p.detach(), classes)  # the second batch does not use the first one's graph
    q2.sum().backward()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_rowwise_prompts_move_as_if_absent_classes_did_not_exist(optimizer):
    """Against a loop over classes with the optimisers' formulas written out. All classes share the step count."""
    torch.manual_seed(2)
    lr, decay, momentum, (b1, b2), eps = 0.1, 0.05, 0.9, (0.9, 0.999), 1e-8
    shape = (6, 2, 3, 4)
    prompts = ClassPrompts(shape, rowwise=True, batch_classes=2, optimizer=optimizer)
    table = prompts.table.clone().double()
    moments = [torch.zeros(shape, dtype=torch.float64) for _ in range(2)]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {"momentum": momentum} if optimizer == "sgd" else {}
    ours = kinds[optimizer](prompts.parameters(), lr=lr, weight_decay=decay, **options)
    for step in range(1, 9):
        classes = torch.randperm(6)[:2]
        weight = torch.randn(2, 2, 3, 4)
        prompts.swap_in(classes, ours)
        ours.zero_grad()
        (prompts(classes).pow(2) * weight).sum().backward()
        ours.step()
        prompts.swap_out(classes, ours)
        for c, w in zip(classes.tolist(), weight.double(), strict=True):
            gradient, value = 2 * table[c] * w, table[c]
            if optimizer == "adamw":
                value = value * (1 - lr * decay)
            else:
                gradient = gradient + decay * value
            if optimizer == "sgd":
                moments[0][c] = momentum * moments[0][c] + gradient
                table[c] = value - lr * moments[0][c]
            else:
                moments[0][c] = b1 * moments[0][c] + (1 - b1) * gradient
                moments[1][c] = b2 * moments[1][c] + (1 - b2) * gradient**2
                corrected = moments[0][c] / (1 - b1**step), moments[1][c] / (1 - b2**step)
                table[c] = value - lr * corrected[0] / (corrected[1].sqrt() + eps)
        assert torch.allclose(prompts.table.double(), table, rtol=1e-4, atol=1e-5), step


def test_dense_prompts_of_absent_classes_keep_moving():
    torch.manual_seed(3)
    prompts = ClassPrompts((3, 1, 2, 4), rowwise=False, batch_classes=1, optimizer="sgd")
    optimizer = torch.optim.SGD(prompts.parameters(), lr=0.1, momentum=0.9)
    for c in (0, 1):
        before = prompts.table.detach().clone()
        optimizer.zero_grad()
        prompts(torch.tensor([c])).sum().backward()
        optimizer.step()
    assert not torch.equal(prompts.table[0], before[0]), "momentum still moves class 0 while class 1 is trained"
    assert torch.equal(prompts.table[2], before[2])


def test_proxies_and_prompts_start_as_in_the_released_code():
    torch.manual_seed(4)
    proxies = SemanticProxies(200, 100, accumulator=EMAAccumulator(0.8, semantics="released"), alpha=0.5)
    bound = (6 / 300) ** 0.5 / 8  # Xavier-uniform / 8
    assert 0.95 * bound < proxies.bias.detach().abs().max() <= bound
    prompts = ClassPrompts((50, 2, 5, 64), rowwise=False, batch_classes=8, optimizer="sgd")
    assert prompts.table.std().item() == pytest.approx((2 / ((50 + 5) * 64)) ** 0.5, rel=0.05)  # Xavier over (C, m, D)


def test_the_moving_average_keeps_what_the_config_says():
    assert make_accumulator(RunConfig(accumulator="ema", ema_keep=0.3)).keep == 0.3
