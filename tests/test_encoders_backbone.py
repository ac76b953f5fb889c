"""What timm and segmentation_models_pytorch ask of an encoder, asked with timm itself."""

import pytest
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay

import ctssl
from tests.support.tiny import SMALL
from training import pretrain
from training.pretext import TASKS
from training.recipe import Run


def test_channels_and_strides_are_where_timm_has_them(encoder):
    maps = encoder(torch.rand(1, 1, 32, 32, 32))
    info = encoder.feature_info
    assert info.channels() == [m.shape[1] for m in maps] == list(encoder.channels)
    assert info.reduction() == [32 // m.shape[2] for m in maps]
    assert encoder.num_features == maps[-1].shape[1] and encoder.num_classes == 0


def test_features_and_pooled_features(encoder):
    x = torch.rand(2, 1, 32, 32, 32)
    features = encoder.forward_features(x)
    assert torch.equal(features, encoder(x)[-1])
    assert torch.allclose(encoder.forward_head(features), features.flatten(2).mean(-1))
    assert torch.equal(encoder.get_classifier()(features), features)


def test_gradient_checkpointing_changes_no_gradient(encoder):
    x = torch.rand(1, 1, 32, 32, 32)
    grads = []
    for enable in (False, True):
        encoder.set_grad_checkpointing(enable)
        encoder.zero_grad()
        encoder.train()(x)[-1].square().mean().backward()
        grads.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_optimisers_of_timm_leave_positions_and_tables_alone(encoder):
    names = encoder.no_weight_decay()
    assert names and all("bias_table" in name or name == "positions" for name in names)
    decayed = create_optimizer_v2(encoder, opt="adamw", lr=1e-3, weight_decay=0.1)
    free = {id(p) for group in decayed.param_groups if not group["weight_decay"] for p in group["params"]}
    assert all(id(p) in free for name, p in encoder.named_parameters() if name in names)
    assert len(param_groups_layer_decay(encoder, 0.1, layer_decay=0.5)) > 2


@pytest.mark.parametrize("task", ["mim", "lesions"])
def test_pretraining_leaves_them_alone_too(encoder, task):
    kind = encoder.architecture
    net = TASKS[task](ctssl.encoders.ENCODERS[kind](**SMALL[kind]))
    opt, _ = pretrain.optimizer(net, Run("x", kind, task, "wild"))
    free = {id(p) for group in opt.param_groups if not group["weight_decay"] for p in group["params"]}
    wanted = net.encoder.no_weight_decay()
    assert all(id(p) in free for name, p in net.encoder.named_parameters() if name in wanted)


def test_a_classifier_is_refused_with_what_to_do_instead(encoder):
    encoder.reset_classifier(0)
    with pytest.raises(ValueError, match="forward_head"):
        encoder.reset_classifier(5)
