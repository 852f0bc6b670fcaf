"""The sizes of blocks of classes."""

from jaxlm.losses.blocks import even_block_size


def test_blocks_are_as_few_as_before_and_repeat_less_than_one_class_each():
    for num_classes in range(1, 60):
        for block_size in range(1, num_classes + 3):
            size = even_block_size(num_classes, block_size)
            blocks = -(-num_classes // size)
            assert size <= block_size and blocks == -(-num_classes // block_size)
            assert 0 <= blocks * size - num_classes < blocks
