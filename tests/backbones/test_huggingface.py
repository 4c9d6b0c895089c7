"""What holds for the Hugging Face families alone: equality with their own forward, published sizes, tokens, errors."""

import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from own_forward import OURS, load, own_inputs, pack, pictures, publish
from transformers import AutoModelForImageTextToText, Qwen2Tokenizer, XLMRobertaTokenizer

from robovlms.backbones.checkpoints.loading import missing_message
from robovlms.backbones.families._kosmos_shared import TAGS
from robovlms.backbones.families._qwen_shared import rotary_positions
from robovlms.backbones.families.florence2 import Florence2, context_mask
from robovlms.backbones.families.gemma4 import Gemma4
from robovlms.backbones.families.kosmos import Kosmos
from robovlms.backbones.layout import Layout
from robovlms.backbones.masks import prefix_mask
from robovlms.config.choices import ModelSize
from robovlms.config.policy import BackboneConfig
from robovlms.errors import NotAllowedError
from robovlms.registry import BACKBONES, check_version

NAMES = [name for name in BACKBONES.names() if name != "nano"]
ANY_SIZE = ["florence2", "gemma4", "lfm2_vl", "qwen2_5_vl", "qwen3_5", "qwen3_vl"]  # reads images of any size


@pytest.fixture(scope="module", params=NAMES)
def published(request, tmp_path_factory):
    """A checkpoint folder as publishers make it: the full model, with the vocabulary head if it is not ours."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, publish(request.param, folder)


def native(name, backbone, full, images, texts, query):
    """Hidden states at `query`, a token id that ends the prompt, by the family's own forward on ids and pixels."""
    batch = pack(name, backbone, list(images[:, None]), texts, [[query]] * len(texts))
    options, last = own_inputs(name, backbone, batch), batch.mask.sum(1) - 1
    if name == "florence2":  # an encoder's context would see the query; masked alike, the decoder must be as long
        width = batch.ids.shape[1]
        is_seen = (torch.arange(width) < last[:, None, None]) | torch.eye(width, dtype=torch.bool)
        options["attention_mask"] = torch.zeros(is_seen.shape).masked_fill(~is_seen, -1e30)[:, None]
        output = full(decoder_input_ids=batch.ids, **options).encoder_last_hidden_state
    else:
        output = full(output_hidden_states=True, **options).hidden_states[-1]
    return output[torch.arange(len(output)), last]


@torch.no_grad()
def test_features_equal_the_full_models_own_forward(published):
    name, folder, full = published
    if name in OURS:
        pytest.skip(f"compared with its authors' computation in test_{name}.py")
    backbone = load(name, folder)
    texts = backbone.tokenize(["push it", "lift the block"])
    width, query = max(map(len, texts)), texts[0][-2]
    if name == "gemma4":
        query = 0  # what is no text has the padding's per-layer embedding
    ids = torch.tensor([row + [0] * (width - len(row)) for row in texts])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in texts])
    images = pictures(backbone, 2)
    queries = backbone.embed_text(torch.full((2, 1), query))[:, None]
    features = backbone(images[:, None, None], ids, mask, queries)[:, 0, 0]
    torch.testing.assert_close(features, native(name, backbone, full, images, texts, query), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_eager_attention_gives_the_same_features(name):
    torch.manual_seed(0)
    backbone = BACKBONES.get(name).tiny().eval()
    ids = torch.tensor(backbone.tokenize(["push it", "lift it"]))
    size = backbone.image_spec.size
    batch = (torch.randn(2, 2, 1, 3, size, size), ids, torch.ones_like(ids, dtype=torch.bool), torch.randn(2, 2, 1, 64))
    expected = backbone(*batch)
    backbone.model.set_attn_implementation("eager")
    torch.testing.assert_close(backbone(*batch), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_larger_gemmas_let_an_image_see_itself_in_sliding_layers_and_have_no_embedding_per_layer():
    small = Gemma4.tiny()
    text = {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    config = small.model.config.to_dict()
    config["text_config"] |= text | {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 70}
    full = AutoModelForImageTextToText.from_config(type(small.model.config)(**config)).eval()
    large = Gemma4(full.model, small.tokenizer, small.image_processor)
    texts = large.tokenize(["push it", "lift it"])
    images, query = torch.rand(2, 3, 64, 64), texts[0][-2]
    ids = torch.tensor(texts)
    ones = torch.ones_like(ids, dtype=torch.bool)
    queries = large.embed_text(torch.full((2, 1), query))[:, None]
    features = large(images[:, None, None], ids, ones, queries)[:, 0, 0]
    torch.testing.assert_close(features, native("gemma4", large, full, images, texts, query), rtol=1e-4, atol=1e-5)


def test_the_prefix_of_a_frame_is_bidirectional_and_its_queries_are_causal():
    mask = torch.tensor([[True] * 6 + [False]])
    frame = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    is_query = torch.tensor([[False, False, True, False, False, True, False]])
    expected = [
        [1, 1, 0, 0, 0, 0, 0],  # prefix of frame 0
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],  # its query
        [1, 1, 1, 1, 1, 0, 0],  # prefix of frame 1
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],  # its query
    ]
    allowed = prefix_mask(Layout(mask, frame, is_query, torch.zeros_like(frame), frame))[0].int()
    assert allowed[:6].tolist() == expected
    assert allowed[:, 6].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_florences_context_sees_earlier_frames_but_no_query():
    mask = torch.tensor([[True] * 6 + [False]])
    frame = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    is_query = torch.tensor([[False, False, True, False, True, True, False]])
    expected = [
        [1, 1, 0, 0, 0, 0, 0],  # context of frame 0
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],  # its query
        [1, 1, 0, 1, 0, 0, 0],  # context of frame 1
        [1, 1, 1, 1, 1, 0, 0],  # its queries
        [1, 1, 1, 1, 1, 1, 0],
    ]
    allowed = context_mask(Layout(mask, frame, is_query, torch.zeros_like(frame), frame))[0].int()
    assert allowed[:6].tolist() == expected
    assert allowed[:, 6].tolist() == [0, 0, 0, 0, 0, 0, 1]


@torch.no_grad()
def test_florences_context_is_what_its_own_encoder_makes_of_image_and_text_without_queries():
    backbone = Florence2.tiny().eval()
    torch.manual_seed(4)
    images, queries = torch.randn(1, 3, 64, 64), torch.randn(1, 2, 64)
    text = torch.tensor(backbone.tokenize(["push it"]))
    tokens = torch.cat([backbone.embed_images(images), backbone.embed_text(text)], dim=1)
    length = tokens.shape[1]
    is_query = torch.arange(length + 2)[None] >= length
    layout = Layout(
        torch.ones_like(is_query),
        torch.zeros_like(is_query, dtype=torch.long),
        is_query,
        -is_query.long(),
        is_query.long(),
    )
    kv_cache = backbone.decode(torch.cat([tokens, queries], dim=1), layout)[:, :length]
    ids = torch.cat([torch.full((1, 5), backbone.model.config.image_token_id), text], dim=1)
    own = backbone.model(input_ids=ids, pixel_values=images, decoder_input_ids=text)
    torch.testing.assert_close(kv_cache, own.encoder_last_hidden_state, rtol=0, atol=1e-5)


def test_a_sequence_beyond_the_decoders_positions_names_what_makes_it_shorter():
    backbone = Florence2.tiny()
    ids = torch.full((1, 250), 5)
    message = r"257 tokens \(1 frames of 1 views x 5 tokens, 250 of text, 2 queries\) exceeds .* 256 .*max_text_tokens"
    with pytest.raises(ValueError, match=message):
        backbone(torch.zeros(1, 1, 1, 3, 64, 64), ids, ids == 5, torch.zeros(1, 1, 2, 64))
    assert Kosmos.tiny().max_length is None


def test_a_transformers_that_was_not_tested_is_refused_with_both_versions(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda library: "5.3.0")
    with pytest.raises(ImportError, match=r"transformers 5\.3\.0 is installed, but robovlms needs .*>=5\.17"):
        check_version("transformers")


def test_the_real_qwen_vocabulary_gives_the_published_ids(shared_data):
    folder = shared_data / "tokenizers" / "qwen2.5"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    expected = json.loads((folder.parent / "EXPECTED.json").read_text())["qwen2.5"]
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    for name in ("qwen2_5_vl", "qwen3_vl"):
        backbone = BACKBONES.get(name).tiny()
        backbone.tokenizer = tokenizer
        assert backbone.tokenize([expected["text"]]) == [expected["ids"]]
        instruction = backbone.tokenize(["open the drawer"])[0]  # upstream adds nothing to it either
        assert tokenizer.convert_ids_to_tokens(instruction) == ["open", "Ġthe", "Ġdrawer"]
        marks = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"])
        assert marks == [151652, 151653, 151655]


@pytest.mark.parametrize("size", [80, 160])
def test_a_size_that_florences_vision_tower_cannot_read_is_refused(size):
    backbone = Florence2.tiny()
    backbone.image_processor.size = {"height": size, "width": size}
    with pytest.raises(ValueError, match=f"makes {size} x {size} px, but .* a multiple of 32 px, at most 128"):
        Florence2(backbone.model, backbone.tokenizer, backbone.image_processor)


def test_image_tokens_stand_in_rows_and_columns_and_text_goes_on_behind_the_largest():
    patch = torch.tensor([[-1, 0, 1, 2, 3, -1, -1, 0, 1, 2, 3, -1]])
    layout = Layout(torch.ones_like(patch, dtype=torch.bool), torch.zeros_like(patch), patch < -1, patch, patch)
    time, row, column = rotary_positions(layout, side=2)[:, 0].tolist()
    assert time == [0, 1, 1, 1, 1, 3, 4, 5, 5, 5, 5, 7]
    assert row == [0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 6, 7]
    assert column == [0, 1, 2, 1, 2, 3, 4, 5, 6, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("kosmos", 1.664),
        ("paligemma", 2.923),
        ("paligemma2", 3.033),
        ("llava", 7.063),
        ("llava_onevision", 0.894),
        ("internvl", 0.938),
        ("idefics3", 8.462),
        ("gemma3", 4.300),
        ("gemma4", 5.104),
        ("qwen2_5_vl", 3.755),
        ("qwen3_vl", 2.128),
        ("smolvlm", 0.507),
        ("florence2", 0.2314),
        ("qwen3_5", 2.213),
        ("lfm2_vl", 0.4508),
    ],
)
def test_the_published_config_has_the_published_number_of_parameters(name, billions):
    with torch.device("meta"):
        full = AutoModelForImageTextToText.from_config(BACKBONES.get(name).published_config())
    assert sum(p.numel() for p in full.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)


def test_the_tokens_stand_where_the_family_wants_them():
    def tokens(name, prompt):
        backbone = BACKBONES.get(name).tiny()
        return backbone.tokenizer.convert_ids_to_tokens(backbone.tokenize([prompt])[0])

    assert tokens("gemma4", "go") == ["<bos>", "g", "o"]
    assert tokens("gemma3", "go") == ["<bos>", "g", "o"]
    assert tokens("kosmos", "<grounding>An") == ["<s>", "<grounding>", "▁", "A", "n"]
    assert tokens("paligemma", "go ") == ["<bos>", "g", "o", "\n"]
    assert tokens("flamingo", "go") == ["<image>", "g", "o", "<|endofchunk|>"]
    assert tokens("idefics3", "go") == ["<|begin_of_text|>", "g", "o"]
    assert tokens("moondream", "go") == ["<|endoftext|>", "g", "o"]
    assert tokens("lfm2_vl", "go") == ["<|startoftext|>", "g", "o"]
    assert tokens("llava", "go") == ["<s>", "▁", "g", "o"]
    for name in ("internvl", "llava_onevision", "uform", "qwen_vl", "qwen2_5_vl", "qwen3_5", "qwen3_vl"):
        assert tokens(name, "go") == ["g", "o"]
    assert tokens("smolvlm", "go") == ["<|im_start|>", "g", "o"]
    assert tokens("florence2", "go") == ["<s>", "g", "o", "</s>"]


def test_the_real_kosmos_vocabulary_gives_the_published_ids(shared_data):
    folder = shared_data / "tokenizers" / "kosmos2"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    backbone = Kosmos.tiny()
    tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([token for token in backbone.tokenizer.added_tokens_decoder.values() if token.content in TAGS])
    backbone.tokenizer = tokenizer
    assert tokenizer.convert_tokens_to_ids(["<image>", "<grounding>"]) == [64003, 64012]
    prompt = "<grounding>Two puppies sit in a field of grass."
    assert backbone.tokenize([prompt]) == [[0, 64012, 1264, 17772, 1357, 12, 10, 770, 9, 4464, 4]]


def test_a_paligemma_of_the_other_generation_names_the_backbone_that_reads_it(tmp_path):
    for generation in ("paligemma", "paligemma2"):
        BACKBONES.get(generation).tiny().save_pretrained(tmp_path / generation)
    with pytest.raises(ValueError, match=r"has 'gemma2': use backbone=paligemma2"):
        load("paligemma", tmp_path / "paligemma2")
    with pytest.raises(ValueError, match=r"has 'gemma': use backbone=paligemma\."):
        load("paligemma2", tmp_path / "paligemma")
    with pytest.raises(ValueError, match=r"attn_implementation=sdpa does not fit backbone=paligemma2"):
        load("paligemma2", tmp_path / "paligemma2", attn_implementation="sdpa")


def test_llava_freezes_what_its_features_do_not_need():
    backbone = BACKBONES.get("llava").tiny()
    frozen = {key.removeprefix("model.vision_tower.") for key, p in backbone.named_parameters() if not p.requires_grad}
    assert {key.split(".")[0] for key in frozen} == {"encoder", "post_layernorm"}
    assert all(".layers.1." in key for key in frozen if key.startswith("encoder"))


# Errors


def test_a_checkpoint_that_is_not_there_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load("kosmos", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"somebody/nothing.*HF_HUB_OFFLINE.*hf download somebody/nothing"):
        load("kosmos", "somebody/nothing")
    with pytest.raises(ValueError, match=r"set backbone\.checkpoint to a hub id"):
        BACKBONES.get("kosmos").from_config(BackboneConfig(name="kosmos"))


def test_a_gated_model_says_where_to_accept_the_licence():
    request = httpx.Request("GET", "https://example.org")
    error = OSError("You are trying to access a gated repo.")
    error.__cause__ = GatedRepoError("gated", response=httpx.Response(403, request=request))
    message = missing_message("google/paligemma-3b-pt-224", "config.json", error)
    assert "model page 'google/paligemma-3b-pt-224'" in message
    assert "hf auth login" in message


def test_a_checkpoint_of_another_family_names_both(published):
    name, folder, full = published
    other = "llava" if "kosmos" in name else "kosmos"
    with pytest.raises(ValueError, match=f"backbone={other} reads .* holds a '{full.config.model_type}' model"):
        load(other, folder)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("config.json", "config.json does not exist"),
        ("model.safetensors", "cannot get the weights"),
        ("p*processor_config.json", "cannot get the image processor"),
        ("tokenizer*", "cannot get the tokenizer"),
    ],
)
def test_an_incomplete_folder_says_what_it_lacks(published, tmp_path, lost, named):
    name, folder, _ = published
    shutil.copytree(folder, tmp_path / "copy")
    for path in (tmp_path / "copy").glob(lost):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=named):
        load(name, tmp_path / "copy")


@pytest.mark.parametrize("name", OURS)
def test_what_must_be_converted_first_says_how(name, tmp_path):
    command = rf"`python scripts/convert_backbone\.py family={name} source=<folder> output_dir=<new folder>`"
    with pytest.raises(
        FileNotFoundError, match=rf"none/config\.json does not exist: .*hf download [\w/.-]+ .* {command}"
    ):
        load(name, "checkpoints/none")
    (tmp_path / "config.json").write_text('{"model_type": "theirs"}')
    with pytest.raises(ValueError, match=rf"holds a 'theirs' model.* converted first: {command}"):
        load(name, tmp_path)


def test_damaged_weights_are_named(published, tmp_path):
    name, folder, _ = published
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match=r"the weights \(model\.safetensors\) are damaged .*: copy or download"):
        load(name, tmp_path / "copy")


def test_missing_weights_are_refused_instead_of_drawn_at_random(published, tmp_path):
    name, folder, full = published
    shutil.copytree(folder, tmp_path / "copy")
    keys = {key: value for key, value in full.state_dict().items() if "layers.1" not in key}
    full.save_pretrained(tmp_path / "copy", state_dict=keys)
    with pytest.raises(ValueError, match=r"lacks .* weights of its config"):
        load(name, tmp_path / "copy")


def test_an_image_processor_of_another_size_is_refused(published, tmp_path):
    name, folder, _ = published
    if name in ANY_SIZE:
        pytest.skip("any size fits")
    shutil.copytree(folder, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("p*processor_config.json"):
        path.write_text(path.read_text().replace("56", "84"))
    with pytest.raises(ValueError, match="84 x 84 px, but the vision tower wants 56 x 56"):
        load(name, tmp_path / "copy")


def test_an_image_processor_that_cuts_other_patches_is_refused():
    backbone = Gemma4.tiny()
    backbone.image_processor.patch_size = 8
    with pytest.raises(ValueError, match=r"cuts patches of 8 px, but the vision tower wants 4 px"):
        Gemma4(backbone.model, backbone.tokenizer, backbone.image_processor)


def test_attention_that_cannot_run_names_an_alternative():
    def tiny(name, attention):
        config = BackboneConfig(name=name, size=ModelSize.tiny, attn_implementation=attention)
        return BACKBONES.get(name).from_config(config)

    with pytest.raises(ValueError, match=r"does not fit backbone=kosmos.* Options: sdpa, eager"):
        tiny("kosmos", "flash_attention_2")
    with pytest.raises(ValueError, match="Did you mean 'sdpa'"):
        tiny("paligemma", "sdpaa")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"needs a GPU.*backbone\.attn_implementation=sdpa"):
            tiny("llava", "flash_attention_2")


def test_queries_that_see_each_other_need_an_attention_that_takes_a_mask():
    backbone = BACKBONES.get("llava").tiny()
    backbone.decoder.config._attn_implementation = "flash_attention_2"  # loading refuses it where there is no GPU
    with pytest.raises(NotAllowedError, match=r"flash_attention_2 takes no mask: use .*attn_implementation=sdpa"):
        backbone.enable_bidirectional_queries()


@pytest.mark.parametrize("path", ["robovlms/backbones/families/internvl.py", "configs/backbone/internvl.yaml"])
def test_the_page_on_adding_a_backbone_shows_the_adapter_that_runs(path):
    root = Path(__file__).parents[2]
    assert (root / path).read_text() in (root / "docs" / "add_a_backbone.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_backbones_says_what_the_yaml_says(name):
    root = Path(__file__).parents[2]
    yaml = (root / "configs" / "backbone" / f"{name}.yaml").read_text()
    tokens, size = re.search(r" (\d+) tokens per (\d+) px view", yaml.splitlines()[0]).groups()
    checkpoint = re.search(r"^(?:# Convert (?=.* first)|checkpoint: )(\S+)", yaml, re.MULTILINE)[1]
    page = (root / "docs" / "backbones.md").read_text().split("<!-- end of the table -->")[0]
    cells = re.search(rf"^\| `{name}` \|.*$", page, re.MULTILINE)[0].split(" | ")
    found, (view, counted, _) = cells[1], cells[-3:]
    assert (found, view) == (checkpoint, f"{size} px"), "run benchmarks/backbones.py"
    assert sum(map(int, counted.split(" + "))) >= int(tokens)
