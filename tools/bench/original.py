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


class OriginalBlock(nn.Module):
    def __init__(self, width, n_heads, n_layers, n_tokens, dropout, attention_dropout):
        super().__init__()
        self.pre_attn_norm, self.pre_fc_norm = OddNorm(width), OddNorm(width)
        self.attn = Heads(width, n_heads, n_layers, None, n_tokens, attention_dropout)
        self.post_attn_dp, self.post_fc_dp = nn.Dropout(dropout), nn.Dropout(dropout)
        self.fc_block = nn.Sequential(nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.post_attn_dp(self.attn(self.pre_attn_norm(x)))
        return x + self.post_fc_dp(self.fc_block(self.pre_fc_norm(x)))


class OriginalGPT(nn.Module):
    """Holds its frozen VQ-VAE, and encodes with it in every step."""

    def __init__(self, vqvae, width, n_layers, n_heads, grid, dropout=0.0, attention_dropout=0.0):
        super().__init__()
        self.vqvae, self.grid = vqvae.requires_grad_(False), grid
        n_codes, code_dim = vqvae.codebook.embeddings.shape
        self.fc_in = nn.Linear(code_dim, width, bias=False)
        nn.init.normal_(self.fc_in.weight, std=0.02)
        stack = self.attn_stack = nn.Module()
        stack.right_shift = nn.Module()
        stack.right_shift.sos = nn.Parameter(torch.randn(width) * 0.02)
        stack.pos_embd = nn.Module()
        stack.pos_embd.emb = nn.ParameterDict(
            {f"d_{k}": nn.Parameter(torch.randn(n, width // 3) * 0.01) for k, n in enumerate(grid)}
        )
        n_tokens = math.prod(grid)
        stack.attn_nets = nn.ModuleList(
            OriginalBlock(width, n_heads, n_layers, n_tokens, dropout, attention_dropout) for _ in range(n_layers)
        )
        self.norm = OddNorm(width)
        self.fc_out = nn.Linear(width, n_codes, bias=False)
        nn.init.zeros_(self.fc_out.weight)

    def train(self, mode=True):
        super().train(mode)
        self.vqvae.eval()
        return self

    def logits(self, vectors):
        """Of code vectors (B, t, h, w, D)."""
        x = self.fc_in(vectors)
        flat = x.flatten(1, 3)
        x = torch.cat([self.attn_stack.right_shift.sos.expand(len(x), 1, -1), flat[:, :-1]], 1).view_as(x)
        t, h, w = (self.attn_stack.pos_embd.emb[f"d_{k}"] for k in range(3))
        shape = (*self.grid, -1)
        places = [t[:, None, None].expand(shape), h[None, :, None].expand(shape), w[None, None].expand(shape)]
        x = x + torch.cat(places, -1)
        for net in self.attn_stack.attn_nets:
            x = checkpoint(net, x, use_reentrant=False) if self.training else net(x)
        return self.fc_out(self.norm(x))

    def forward(self, video):
        """Training loss of clips, encoded anew."""
        with torch.no_grad():
            vectors, codes = self.vqvae.encode(video)
        return F.cross_entropy(self.logits(vectors.movedim(1, -1)).flatten(0, -2), codes.flatten())
