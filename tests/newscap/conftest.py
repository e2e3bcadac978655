"""Tiny random checkpoints in the formats of the published ones."""

import json

import pytest
import torch

WORDS = ["ana", "torres", "leo", "park", "met", "in", "corvo", ".", "a", "photo", "of", "as", "the"]

# A checkout in CoFormer's layout: models.build_model, util, SWiG_jsons.
CHECKOUT = {
    "models/__init__.py": "from .net import build\n\ndef build_model(args):\n    return build(args)\n",
    "models/net.py": """
import torch
from util.misc import one

class Net(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        self.order, self.nouns = args.vidx_ridx, args.num_noun_classes
        self.verb = torch.nn.Parameter(torch.zeros(len(args.idx_to_verb)))

    def forward(self, samples, targets=None, inference=False):
        if not inference:
            return targets[0]  # like the original: without targets it cannot run
        n = len(samples)
        noun = torch.zeros(n, 6, self.nouns)
        noun[:, 0, 2], noun[:, 1, 1] = 1.0, 1.0
        return {"pred_verb": self.verb.expand(n, -1), "pred_noun_3": noun, "pred_bbox": torch.full((n, 6, 4), 0.5),
                "pred_bbox_conf": torch.full((n, 6, 1), -float(one))}

def build(args):
    assert args.hidden_dim == 512 and args.inference
    return Net(args), None
""",
    "util/__init__.py": "",
    "util/misc.py": "one = 1\n",
    "SWiG/SWiG_jsons/verb_indices.txt": "marching\nhugging\n",
    "SWiG/SWiG_jsons/role_indices.txt": "agent\nhugged\nplace\n",
    "SWiG/SWiG_jsons/train_classes.csv": "Pad,0\noov,1\nn10787470,2\n",
    "SWiG/SWiG_jsons/imsitu_space.json": """{"verbs": {
        "marching": {"abstract": "AGENT marches at PLACE", "order": ["agent", "place"], "roles": {"agent": {"def": "a"},
                     "place": {"def": "p"}}},
        "hugging": {"abstract": "AGENT hugs HUGGED at PLACE", "order": ["agent", "hugged", "place"],
                    "roles": {"agent": {"def": "a"}, "hugged": {"def": "h"}, "place": {"def": "p"}}}},
        "nouns": {"n10787470": {"gloss": ["woman", "adult female"], "def": "an adult"}}}""",
}


@pytest.fixture(scope="session")
def ner(tmp_path_factory):
    """A token classifier that calls every "ana" and "torres" a person, whatever stands around."""
    from transformers import BertTokenizerFast, DistilBertConfig, DistilBertForTokenClassification

    folder = tmp_path_factory.mktemp("ner")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    names = ["O", "B-PER", "I-PER"]
    config = DistilBertConfig(vocab_size=5 + len(WORDS), dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=32,
                              id2label=dict(enumerate(names)), label2id={n: k for k, n in enumerate(names)})  # fmt: skip
    model = DistilBertForTokenClassification(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        # layer norms pass the token's own embedding on; three orthogonal codes
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1.0)
        table = model.distilbert.embeddings.word_embeddings.weight
        table[:, 0], table[:, 1] = 4.0, -4.0
        table[5], table[6] = 0.0, 0.0
        table[5, 2], table[5, 3], table[6, 4], table[6, 5] = 4.0, -4.0, 4.0, -4.0
        model.classifier.weight[0, 0] = model.classifier.weight[1, 2] = model.classifier.weight[2, 4] = 5.0
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A CLIP with random weights of width 16, its image processor and a tokenizer with a few words."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    letters = [*map(chr, range(97, 123)), ".", ":"]
    vocab = ["<|startoftext|>", *letters, *[c + "</w>" for c in letters], "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: k for k, w in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    text = {"vocab_size": len(vocab), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
              "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A checkout of CoFormer with a checkpoint as its training saves it, which always says hugging."""
    folder = tmp_path_factory.mktemp("coformer")
    for name, text in CHECKOUT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    torch.save({"model": {"verb": torch.tensor([0.0, 3.0])}, "epoch": 39}, folder / "CoFormer_checkpoint.pth")
    return folder
