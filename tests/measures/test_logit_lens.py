from __future__ import annotations

import pytest
import torch
from naive import column, decode, drawn, forward, stream, tables
from zoo import ZOO, gpt2, llama, t5, token_ids

import layerwright.core.batch as batch_module
from layerwright.measures.logit_lens import logit_lens


def test_hand_values() -> None:
    """Two coins: KL(½, ½ ‖ ¾, ¼) = ½ ln ⅔ + ½ ln 2."""
    lens, final = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[0.75, 0.25]]).log()
    found = logit_lens(lens, final)
    assert found["kl"].item() == pytest.approx(0.5 * (torch.tensor(2 / 3).log() + torch.tensor(2.0).log()).item())
    assert found["top5_overlap"].item() == 1.0  # there are but two classes
    six = torch.arange(6.0)[None, None]
    found = logit_lens(six, six[0].flip(-1))
    assert (found["top5_overlap"].item(), found["top1_agreement"].item()) == (pytest.approx(0.8), 0.0)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_as_the_paper_does_it(build) -> None:
    """A block's input through the final norm and the head: KL(lens ‖ final) and |top 5 ∩ top 5| / 5."""
    model, ids = build(), token_ids(5, 40)
    frame = tables(model, {"input_ids": ids}, "logit_lens")["logit_lens"]
    rows, places = torch.arange(5)[:, None], drawn(5, 40, 16)
    h, _, _ = stream(model, ids)
    q = forward(model, ids)[rows, places].flatten(0, 1).log_softmax(-1)
    for k, state in enumerate(h):
        p = decode(model, state)[rows, places].flatten(0, 1).log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)
        shared = [
            len(set(a.topk(5).indices.tolist()) & set(b.topk(5).indices.tolist())) / 5
            for a, b in zip(p, q, strict=True)
        ]
        agree = (p.argmax(-1) == q.argmax(-1)).double()
        assert column(frame, point=k, quantity="kl").item() == pytest.approx(kl.mean().item(), rel=1e-4, abs=1e-6)
        assert column(frame, "max", point=k, quantity="kl").item() == pytest.approx(kl.max().item(), rel=1e-4, abs=1e-6)
        assert column(frame, point=k, quantity="top5_overlap").item() == pytest.approx(sum(shared) / len(shared))
        assert column(frame, point=k, quantity="top1_agreement").item() == pytest.approx(agree.mean().item())
    assert (frame["tokens"] == 80).all()


def test_the_sample_is_bounded_over_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "LENS_TOKENS", 5)
    frame = tables(gpt2(), {"input_ids": token_ids(5, 40)}, "logit_lens")["logit_lens"]
    assert (frame["tokens"] == 5).all()


def test_a_constant_on_the_logits_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 9, generator=generator), torch.randn(3, 9, generator=generator)
    for name, expected in logit_lens(a, b).items():
        torch.testing.assert_close(logit_lens(a + 10, b - 3)[name], expected, rtol=1e-4, atol=1e-5)


def test_the_last_state_is_the_answer() -> None:
    for name in ("llama", "bert", "mamba", "vit", "resnet", "t5 decoder", "nn.Sequential"):
        model, inputs, expected = ZOO[name]()
        if expected.blocks is None:
            frame = tables(model, inputs, "logit_lens")["logit_lens"]
            last = frame[frame["point"] == frame["point"].max()].set_index("quantity")["value"]
            assert last["kl"] == pytest.approx(0.0, abs=1e-6), name
            assert last["top5_overlap"] == last["top1_agreement"] == 1.0, name


def test_images_are_decoded_whole() -> None:
    """One answer a picture: pooling and head read all patches."""
    model, inputs, _ = ZOO["vit"]()
    frame = tables(model, inputs, "logit_lens")["logit_lens"]
    model.eval()
    with torch.no_grad():
        h = model.vit.embeddings(inputs["pixel_values"])
        q = model(**inputs).logits.log_softmax(-1)
        p = model.classifier(model.vit.layernorm(h)[:, 0]).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert column(frame, point=0, quantity="kl").item() == pytest.approx(kl, rel=1e-4)


def test_the_lens_of_a_decoder_keeps_its_encoder() -> None:
    inputs = {"input_ids": token_ids()}
    frame = tables(t5(), inputs, "logit_lens")["logit_lens"]
    assert column(frame, point=3, quantity="kl").item() == pytest.approx(0.0, abs=1e-6)


def test_equal_logits_and_one_class() -> None:
    same = torch.zeros(1, 1, 4)
    found = logit_lens(same, same[0])
    assert (found["kl"].item(), found["top1_agreement"].item()) == (0.0, 1.0)
    one = torch.zeros(1, 1, 1)
    assert logit_lens(one, one[0] + 3)["kl"].item() == 0.0
