"""Chat templates that open a thinking block: the direct score comes behind an empty one, a reasoned score behind the
closing tag only."""

import pytest
from real_judges import real_judge

from zr_ray.errors import JudgeError
from zr_ray.models.judge_text import JudgeText


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("thinking")
    return {how: real_judge(root / how, "qwen3_vl", how, width=32) for how in ("none", "always", "switch")}


@pytest.mark.parametrize("how", ["always", "switch"])
def test_a_direct_question_closes_the_block_first(folders, how):
    text = JudgeText(folders[how])
    asked = text.tokenizer.decode(text.question("a cat", "realism", direct=True))
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nScore: ")
    plain = JudgeText(folders["none"])
    asked = plain.tokenizer.decode(plain.question("a cat", "realism", direct=True))
    assert asked.endswith("<|im_start|>assistant\nScore: ") and "<think>" not in asked


def test_a_given_prefix_is_kept(folders, tmp_path):
    import shutil

    folder = shutil.copytree(folders["always"], tmp_path / "own")
    (folder / "scoring_format.json").write_text('{"direct_prefix": "Short.</think>"}')
    text = JudgeText(folder)
    assert text.tokenizer.decode(text.question("a cat", "realism", direct=True)).endswith("Short.</think>Score: ")


def encoded(text, words):
    return text.tokenizer.encode(words, add_special_tokens=False)


def test_a_score_inside_the_thought_is_none(folders):
    thinking, plain = JudgeText(folders["always"]), JudgeText(folders["none"])
    within = encoded(thinking, "Maybe Score: 4 or so")
    assert thinking.score_index(within) is None  # cut off before the thought ended
    assert plain.score_index(within) is not None  # nothing opened a block here
    assert plain.score_index(encoded(plain, "<think>\nScore: 4")) is None
    behind = encoded(thinking, "Maybe Score: 4.\n</think>\n\nScore: 7")
    at = thinking.score_index(behind)
    assert at == len(behind) - 1 and thinking.tokenizer.decode([behind[at]]) == "7"
    assert thinking.score_index(encoded(thinking, "Score: 4\n</think>\n\nfine")) is None


@pytest.mark.parametrize("how", ["none", "always"])
def test_a_written_answer_is_read_back(folders, how):
    text = JudgeText(folders[how])
    tokens, at = text.answer(6, "sharp edges, no noise")
    assert text.score_index(tokens) == at and text.tokenizer.decode([tokens[at]]) == "7"


def test_a_folder_without_chat_template_is_refused(folders, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(folders["none"], tmp_path / "base")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(JudgeError, match="must have a chat template"):
        JudgeText(folder)
