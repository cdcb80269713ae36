"""Rows whose images came as files are packed as rows of arrays are, to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zr_ray.data.encoded import encoded_image
from zr_ray.data.images import load_image
from zr_ray.models.judge import load_packed_judge
from zr_ray.models.packing import Row
from zr_ray.models.preprocess import PixelPreprocessor
from zr_ray.models.questions import QuestionPacker, QuestionRow
from zr_ray.rubric import DIMENSIONS


@pytest.fixture(scope="module")
def judge(judge_path):
    return load_packed_judge(judge_path, torch.float32)


def same(one, other) -> bool:
    return all(torch.equal(value, getattr(other, name)) for name, value in vars(one).items())


def test_rows_of_completions(judge, world_items):
    _, text, packer = judge
    completion = (np.array([text.label_ids[2], text.end_id], np.int32),)
    arrays = [
        Row(text.question(item.prompt, "realism", True), load_image(item.image), completion, (0,))
        for item in world_items[:3]
    ]
    files = [replace(row, image=encoded_image(i.image)) for row, i in zip(arrays, world_items, strict=False)]
    assert same(packer.pack(files), packer.pack(arrays))
    assert [packer.image_tokens(row.image) for row in files] == [packer.image_tokens(row.image) for row in arrays]


def test_rows_of_questions(judge, judge_path, world_items):
    module, text, _ = judge
    packer = QuestionPacker(module.model, text, PixelPreprocessor.load(judge_path))
    arrays = [QuestionRow(load_image(item.image), item.prompt, DIMENSIONS) for item in world_items[:3]]
    files = [replace(row, image=encoded_image(i.image)) for row, i in zip(arrays, world_items, strict=False)]
    assert same(packer.pack(files), packer.pack(arrays))
    for file, array in zip(files, arrays, strict=True):
        assert packer.image_tokens(file.image) == packer.image_tokens(array.image)
        assert packer.length(file, 0) == packer.length(array, 0)
