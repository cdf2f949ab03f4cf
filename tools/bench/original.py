"""VideoGPT's formulas in plain torch, written anew for comparison: names of the state dict are the original's.

Nothing here is fast on purpose: attention makes its S x S scores, the codebook its one-hot matrix, padding is written
out, blocks are run again in the backward pass. Shapes: video (B, 3, T, H, W) in [-0.5, 0.5].
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as torch's own documents name it
from torch.utils.checkpoint import checkpoint


def padding(kernel, stride):
    """Zeros before and after each axis, last axis first, so that a stride divides the size exactly."""
    total = [k - s for k, s in zip(kernel, stride, strict=True)]
    return [n for t in reversed(total) for n in (t // 2 + t % 2, t // 2)]


class PaddedConv(nn.Module):
    def __init__(self, channels, width, kernel, stride=(1, 1, 1), bias=True):
        super().__init__()
        self.pad = padding((kernel,) * 3, stride)
        self.conv = nn.Conv3d(channels, width, kernel, stride=stride, bias=bias)

    def forward(self, x):
        return self.conv(F.pad(x, self.pad))


class PaddedTransposed(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.pad = padding((4, 4, 4), stride)
        self.convt = nn.ConvTranspose3d(channels, width, 4, stride=stride, padding=3)

    def forward(self, x):
        return self.convt(F.pad(x, self.pad))


def softmax_attention(q, k, v, mask=None, dropout=0.0, training=False):
    """(…, S, d): scores, mask, softmax, dropout, sum, each of them made."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout, training) @ v


class Heads(nn.Module):
    """Maps to queries, keys and values and back; `axis` of (B, t, h, w, C), or None for all tokens, causally."""

    def __init__(self, width, n_heads, n_layers=1, axis=None, n_tokens=0, dropout=0.0):
        super().__init__()
        self.n_heads, self.d, self.axis, self.dropout = n_heads, width // n_heads, axis, dropout
        for name in ("w_qs", "w_ks", "w_vs"):
            setattr(self, name, nn.Linear(width, n_heads * self.d, bias=False))
            nn.init.normal_(getattr(self, name).weight, std=width**-0.5)
        self.fc = nn.Linear(n_heads * self.d, width)
        nn.init.normal_(self.fc.weight, std=(width * n_layers) ** -0.5)
        if axis is None:
            self.attn = nn.Module()
            self.attn.register_buffer("mask", torch.tril(torch.ones(n_tokens, n_tokens)))

    def forward(self, x):
        lines = x.flatten(1, 3) if self.axis is None else x.movedim(self.axis, 3)
        q, k, v = (
            getattr(self, name)(lines).unflatten(-1, (self.n_heads, self.d)).transpose(-2, -3)
            for name in ("w_qs", "w_ks", "w_vs")
        )
        mask = self.attn.mask if self.axis is None else None
        y = self.fc(softmax_attention(q, k, v, mask, self.dropout, self.training).transpose(-2, -3).flatten(-2))
        return y.unflatten(1, x.shape[1:4]) if self.axis is None else y.movedim(3, self.axis)


class Axial(nn.Module):
    def __init__(self, width, n_heads=2):
        super().__init__()
        self.attn_w, self.attn_h, self.attn_t = (Heads(width, n_heads, axis=axis) for axis in (3, 2, 1))

    def forward(self, x):
        x = x.movedim(1, -1)
        return (self.attn_w(x) + self.attn_h(x) + self.attn_t(x)).movedim(-1, 1)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block = nn.Sequential(
            nn.BatchNorm3d(width), nn.ReLU(), PaddedConv(width, width // 2, 3, bias=False),
            nn.BatchNorm3d(width // 2), nn.ReLU(), PaddedConv(width // 2, width, 1, bias=False),
            nn.BatchNorm3d(width), nn.ReLU(), Axial(width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.block(x)


def stack(width, n_layers):
    return nn.Sequential(*(Residual(width) for _ in range(n_layers)), nn.BatchNorm3d(width), nn.ReLU())


def strides(downsample):
    halvings = [int(math.log2(n)) for n in downsample]
    return [tuple(2 if i < n else 1 for n in halvings) for i in range(max(halvings))]


class Encoder(nn.Module):
    def __init__(self, width, n_layers, downsample):
        super().__init__()
        each = strides(downsample)
        self.convs = nn.ModuleList(PaddedConv(width if i else 3, width, 4, s) for i, s in enumerate(each))
        self.conv_last = PaddedConv(width, width, 3)
        self.res_stack = stack(width, n_layers)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.res_stack(self.conv_last(x))


class Decoder(nn.Module):
    def __init__(self, width, n_layers, downsample):
        super().__init__()
        each = strides(downsample)
        self.res_stack = stack(width, n_layers)
        last = len(each) - 1
        self.convts = nn.ModuleList(PaddedTransposed(width, 3 if i == last else width, s) for i, s in enumerate(each))

    def forward(self, x):
        x = self.res_stack(x)
        for i, convt in enumerate(self.convts):
            x = convt(x)
            if i < len(self.convts) - 1:
                x = F.relu(x)
        return x


class Codebook(nn.Module):
    """Running means, by a one-hot matrix; codes with a running count below 1 are replaced, their sums are not."""

    def __init__(self, n_codes, code_dim):
        super().__init__()
        self.register_buffer("embeddings", torch.randn(n_codes, code_dim))
        self.register_buffer("N", torch.zeros(n_codes))
        self.register_buffer("z_avg", self.embeddings.clone())
        self.started = False

    def forward(self, z):
        flat = z.movedim(1, -1).flatten(0, -2)
        if self.training and not self.started:
            self.started = True
            chosen = flat.detach()[torch.randint(len(flat), (len(self.embeddings),))]
            self.embeddings.copy_(chosen)
            self.z_avg.copy_(chosen)
            self.N.fill_(1.0)
        squares = (flat**2).sum(1, keepdim=True) - 2 * flat @ self.embeddings.T + (self.embeddings.T**2).sum(0)
        codes = squares.argmin(1)
        one_hot = F.one_hot(codes, len(self.embeddings)).to(flat)
        shape = (z.shape[0], *z.shape[2:])
        vectors = F.embedding(codes.view(shape), self.embeddings).movedim(-1, 1)
        commitment = 0.25 * F.mse_loss(z, vectors.detach())
        if self.training:
            with torch.no_grad():
                self.N.mul_(0.99).add_(one_hot.sum(0), alpha=0.01)
                self.z_avg.mul_(0.99).add_(one_hot.T @ flat, alpha=0.01)
                total = self.N.sum()
                weights = (self.N + 1e-7) / (total + len(self.N) * 1e-7) * total
                self.embeddings.copy_(self.z_avg / weights[:, None])
                used = (self.N >= 1).to(flat)[:, None]
                random = flat[torch.randint(len(flat), (len(self.embeddings),))]
                self.embeddings.mul_(used).add_(random * (1 - used))
        return z + (vectors - z).detach(), codes.view(shape), commitment


class OriginalVQVAE(nn.Module):
    def __init__(self, width, n_layers, downsample, n_codes, code_dim):
        super().__init__()
        self.encoder, self.decoder = Encoder(width, n_layers, downsample), Decoder(width, n_layers, downsample)
        self.pre_vq_conv, self.post_vq_conv = PaddedConv(width, code_dim, 1), PaddedConv(code_dim, width, 1)
        self.codebook = Codebook(n_codes, code_dim)

    def encode(self, x):
        """Code vectors (B, D, t, h, w) and codes."""
        vectors, codes, _ = self.codebook(self.pre_vq_conv(self.encoder(x)))
        return vectors, codes

    def decode(self, codes):
        return self.decoder(self.post_vq_conv(F.embedding(codes, self.codebook.embeddings).movedim(-1, 1)))

    def forward(self, x):
        """Training loss."""
        vectors, _, commitment = self.codebook(self.pre_vq_conv(self.encoder(x)))
        return F.mse_loss(self.decoder(self.post_vq_conv(vectors)), x) / 0.06 + commitment


class OddNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centred = x.float() - x.float().mean(-1, keepdim=True)
        return (centred * (1e-5 + centred.pow(2).mean(-1, keepdim=True).rsqrt()) * self.g + self.b).type_as(x)


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ClassNorm(nn.Module):
    """Gain and offset by class: `label` is set before a pass."""

    def __init__(self, width, n_classes):
        super().__init__()
        self.w, self.wb = nn.Linear(n_classes, width, bias=False), nn.Linear(n_classes, width, bias=False)
        nn.init.constant_(self.w.weight, n_classes**-0.5)
        self.label = 0

    def forward(self, x):
        one_hot = F.one_hot(torch.tensor(self.label), self.w.in_features).float()
        centred = x.float() - x.float().mean(-1, keepdim=True)
        normed = centred * (1e-5 + centred.pow(2).mean(-1, keepdim=True).rsqrt())
        return (normed * (1 + self.w(one_hot)) + self.wb(one_hot)).type_as(x)


class ChannelNorm(nn.Module):
    """Layer norm over channels, which the study's version has where VideoGPT has batch norm."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class NormReLU(nn.Module):
    def __init__(self, norm, width, relu=True):
        super().__init__()
        self.norm, self.relu = norm(width), relu

    def forward(self, x):
        y = self.norm(x.float()).type_as(x)
        return F.relu(y) if self.relu else y


class ResidualBlock(nn.Module):
    def __init__(self, norm, channels, width, stride=(1, 1, 1), use_projection=False):
        super().__init__()
        self.use_projection = use_projection
        if use_projection:
            self.proj_conv = nn.Conv3d(channels, width, 1, stride=stride, bias=False)
            self.proj_bnr = NormReLU(norm, width, relu=False)
        self.conv1, self.bnr1 = nn.Conv3d(channels, width, 3, stride, 1, bias=False), NormReLU(norm, width)
        self.conv2, self.bnr2 = nn.Conv3d(width, width, 3, 1, 1, bias=False), NormReLU(norm, width)

    def forward(self, x):
        shortcut = self.proj_bnr(self.proj_conv(x)) if self.use_projection else x
        return F.relu(self.bnr2(self.conv2(self.bnr1(self.conv1(x)))) + shortcut)


class BlockGroup(nn.Module):
    def __init__(self, norm, channels, width, n_blocks, stride):
        super().__init__()
        self.start_block = ResidualBlock(norm, channels, width, stride, use_projection=True)
        self.blocks = nn.Sequential(*(ResidualBlock(norm, width, width) for _ in range(n_blocks - 1)))

    def forward(self, x):
        return self.blocks(self.start_block(x))


class ResNet34(nn.Module):
    """3-D, with a stem that keeps the resolution; rows and columns are halved twice."""

    def __init__(self, norm, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 64, 3, padding=1, bias=False), NormReLU(norm, 64))
        self.group1 = BlockGroup(norm, 64, 64, 3, (1, 1, 1))
        self.group2 = BlockGroup(norm, 64, 128, 4, (1, 2, 2))
        self.group3 = BlockGroup(norm, 128, 256, 6, (1, 2, 2))
        self.group4 = BlockGroup(norm, 256, width, 3, (1, 1, 1))

    def forward(self, x):
        return self.group4(self.group3(self.group2(self.group1(self.stem(x)))))


class Places(nn.Module):
    """Thirds of the width for the axes of a grid."""

    def __init__(self, grid, width):
        super().__init__()
        self.emb = nn.ParameterDict(
            {f"d_{k}": nn.Parameter(torch.randn(n, width // 3) * 0.01) for k, n in enumerate(grid)}
        )

    def forward(self, x):
        t, h, w = (self.emb[f"d_{k}"] for k in range(3))
        shape = (*x.shape[1:4], -1)
        places = [t[:, None, None].expand(shape), h[None, :, None].expand(shape), w[None, None].expand(shape)]
        return x + torch.cat(places, -1)


class CrossHeads(nn.Module):
    """Attention of tokens to a context, all of it."""

    def __init__(self, width, context, n_heads, n_layers):
        super().__init__()
        self.n_heads, d_k, d_v = n_heads, width // n_heads, context // n_heads
        for name, channels, d in (("w_qs", width, d_k), ("w_ks", context, d_k), ("w_vs", context, d_v)):
            setattr(self, name, nn.Linear(channels, n_heads * d, bias=False))
            nn.init.normal_(getattr(self, name).weight, std=channels**-0.5)
        self.fc = nn.Linear(n_heads * d_v, width)
        nn.init.normal_(self.fc.weight, std=(width * n_layers) ** -0.5)

    def forward(self, x, context):
        q, k, v = (
            layer(lines.flatten(1, 3)).unflatten(-1, (self.n_heads, -1)).transpose(-2, -3)
            for layer, lines in ((self.w_qs, x), (self.w_ks, context), (self.w_vs, context))
        )
        return self.fc(softmax_attention(q, k, v).transpose(-2, -3).flatten(-2)).view_as(x)


class OriginalBlock(nn.Module):
    def __init__(self, width, n_heads, n_layers, n_tokens, dropout, attention_dropout, norm=OddNorm, context=0):
        super().__init__()
        self.pre_attn_norm, self.pre_fc_norm = norm(width), norm(width)
        self.attn = Heads(width, n_heads, n_layers, None, n_tokens, attention_dropout)
        self.post_attn_dp, self.post_fc_dp = nn.Dropout(dropout), nn.Dropout(dropout)
        if context:
            self.pre_enc_norm, self.post_enc_dp = norm(width), nn.Dropout(dropout)
            self.enc_attn = CrossHeads(width, context, n_heads, n_layers)
        self.fc_block = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width))

    def forward(self, x, context=None):
        x = x + self.post_attn_dp(self.attn(self.pre_attn_norm(x)))
        if context is not None:
            x = x + self.post_enc_dp(self.enc_attn(self.pre_enc_norm(x), context))
        return x + self.post_fc_dp(self.fc_block(self.pre_fc_norm(x)))


class OriginalGPT(nn.Module):
    """Holds its frozen VQ-VAE, and encodes with it in every step.

    `emb_cond`: reads code vectors of the clip before (the study's version, layer norm). `cond_frames`: (n, H, W) of the
    clip's first frames. `n_classes`: gains and offsets of norms by class. `learned_start`: False for the last version.
    """

    def __init__(
        self, vqvae, width, n_layers, n_heads, grid, dropout=0.0, attention_dropout=0.0, emb_cond=False,
        cond_frames=None, cond_width=240, cond_norm=nn.BatchNorm3d, n_classes=None, learned_start=True,
    ):  # fmt: skip
        super().__init__()
        self.vqvae, self.grid, self.emb_cond, self.cond_frames = (
            vqvae.requires_grad_(False),
            grid,
            emb_cond,
            cond_frames,
        )
        n_codes, code_dim = vqvae.codebook.embeddings.shape
        context = cond_width if emb_cond or cond_frames else 0
        if emb_cond:
            self.resnet = ResidualBlock(cond_norm, code_dim, cond_width, use_projection=True)
            self.cond_pos_embd = Places(grid, cond_width)
        if cond_frames:
            self.resnet = ResNet34(cond_norm, cond_width)
            n, h, w = cond_frames
            self.cond_pos_embd = Places((n, h // 4, w // 4), cond_width)
        norm = OddNorm if n_classes is None else lambda channels: ClassNorm(channels, n_classes)
        self.fc_in = nn.Linear(code_dim, width, bias=False)
        nn.init.normal_(self.fc_in.weight, std=0.02)
        stack = self.attn_stack = nn.Module()
        if learned_start:
            stack.right_shift = nn.Module()
            stack.right_shift.sos = nn.Parameter(torch.randn(width) * 0.02)
        stack.pos_embd = Places(grid, width)
        n_tokens = math.prod(grid)
        stack.attn_nets = nn.ModuleList(
            OriginalBlock(width, n_heads, n_layers, n_tokens, dropout, attention_dropout, norm, context)
            for _ in range(n_layers)
        )
        self.norm = norm(width)
        self.fc_out = nn.Linear(width, n_codes, bias=False)
        nn.init.zeros_(self.fc_out.weight)

    def train(self, mode=True):
        super().train(mode)
        self.vqvae.eval()
        return self

    def told(self, previous=None, video=None):
        """Context of blocks: from video (B, 3, T, H, W) of the clip before, or of the clip itself."""
        if self.emb_cond:
            read = self.resnet(self.vqvae.encode(previous)[0])
        elif self.cond_frames:
            read = self.resnet(video[:, :, : self.cond_frames[0]])
        else:
            return None
        return self.cond_pos_embd(read.movedim(1, -1))

    def logits(self, vectors, context=None):
        """Of code vectors (B, t, h, w, D)."""
        x = self.fc_in(vectors)
        flat, stack = x.flatten(1, 3), self.attn_stack
        start = stack.right_shift.sos.expand(len(x), 1, -1) if hasattr(stack, "right_shift") else 0 * flat[:, :1]
        x = stack.pos_embd(torch.cat([start, flat[:, :-1]], 1).view_as(x))
        for net in stack.attn_nets:
            x = checkpoint(net, x, context, use_reentrant=False) if self.training else net(x, context)
        return self.fc_out(self.norm(x))

    def forward(self, video, previous=None):
        """Training loss of clips, encoded anew."""
        with torch.no_grad():
            vectors, codes = self.vqvae.encode(video)
        logits = self.logits(vectors.movedim(1, -1), self.told(previous, video))
        return F.cross_entropy(logits.flatten(0, -2), codes.flatten())
