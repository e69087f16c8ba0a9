"""The search finds the section that answers: questions that learners ask, each with its address."""

import itertools
import string

import pytest

# What is typed, and the sections that answer it: one of them has to be the first result. A new
# question is a new line; a page that answers better than these is added to the line.
QUESTIONS = {
    "column sum": ["fusion/reductions/#columns-two-stages"],
    "atomic add not deterministic": [
        "fusion/reductions/#everything-two-stages-in-one-launch-or-atomics",
        "fusion/layer_norm/#backward-what-it-has-to-compute",
    ],
    "cumulative sum": [
        "fusion/reductions/#scans-every-partial-result",
        "fusion/reductions/#measure",
    ],
    "variance goes negative": ["fusion/layer_norm/#three-ways-to-a-variance-one-of-them-wrong"],
    "welford": [
        "glossary/#welford",
        "fusion/layer_norm/#three-ways-to-a-variance-one-of-them-wrong",
    ],
    "ring of buffers": ["attention/hopper_attention/#a-warp-that-only-loads"],
    "Gluon layouts": [
        "glossary/#gluon",
        "attention/hopper_attention/#gluon-the-same-compiler-one-floor-down",
    ],
    "gradient of attention": ["attention/flash_attention_backward/"],
    "attention backward": ["attention/flash_attention_backward/"],
    "wait for one product": [
        "attention/hopper_backward/",
        "attention/hopper_backward/#rung-2-wait-for-one-alone",
    ],
    "grouped-query attention": ["glossary/#gqa", "attention/gqa_varlen/"],
    "variable length sequences": ["attention/gqa_varlen/"],
    "packed sequences": ["glossary/#packed-batch", "attention/gqa_varlen/"],
    "ragged batch": ["attention/gqa_varlen/"],
    "sliding window": ["glossary/#sliding-window", "attention/gqa_varlen/#step-4-a-band"],
    "soft-cap": ["glossary/#soft-cap", "attention/gqa_varlen/#step-5-scores-within-bounds"],
    "page table of the cache": [
        "attention/flash_decoding/",
        "attention/flash_decoding/#step-4-follow-the-table",
    ],
    "split the keys, merge the parts": [
        "attention/flash_decoding/#step-2-split-the-keys-merge-the-parts",
    ],
    "why is my kernel slower at small sizes": [
        "faq/#why-is-my-triton-kernel-slower-than-pytorch-at-small-sizes",
    ],
    "power of two": [
        "foundations/programming_model/#the-size-of-a-block-powers-of-two-and-num_warps",
    ],
    "why powers of two": [
        "foundations/programming_model/#the-size-of-a-block-powers-of-two-and-num_warps",
    ],
    "BLOCK_SIZE": [
        "foundations/programming_model/#the-size-of-a-block-powers-of-two-and-num_warps",
    ],
    "num_warps": [
        "faq/#what-does-num_warps-do",
        "foundations/programming_model/#the-size-of-a-block-powers-of-two-and-num_warps",
    ],
    "what does num_stages do": [
        "foundations/compiler/#what-num_stages-changes",
        "faq/#what-does-num_stages-do",
    ],
    "out of shared memory": ["faq/#out-of-resource-shared-memory-required-hardware-limit"],
    "large tensors crash": ["faq/#why-does-it-crash-only-for-large-tensors-int32-overflow"],
    "autotune takes too long": ["faq/#why-does-autotune-take-so-long"],
    "autotune corrupts my tensor": ["faq/#why-does-autotune-corrupt-my-tensor"],
    "int32 overflow": ["faq/#why-does-it-crash-only-for-large-tensors-int32-overflow"],
    "who uses triton": ["production/#who-uses-triton-and-for-what"],
    "triton vs cuda": ["why_triton/"],
    "how much does it save": ["production/#what-it-saves"],
    "papers and talks": ["resources/"],
    "prune configurations": ["foundations/autotuning/#prune-before-you-run"],
    "TF32": ["glossary/#tf32"],
    "float32 matmul precision": [
        "faq/#why-does-my-float32-product-differ-from-torch",
        "faq/#why-is-my-float32-fp32-matmul-slow",
    ],
    "float32 dot product inexact": [
        "foundations/compiler/#why-is-a-float32-product-inexact",
        "faq/#why-does-my-float32-product-differ-from-torch",
    ],
    "grouped ordering L2": ["faq/#why-does-grouped-ordering-group_size_m-show-no-gain"],
    "interpreter differs from gpu": [
        "foundations/debugging/#where-it-differs-from-a-gpu",
        "faq/#why-does-the-interpreter-give-another-result-than-the-gpu",
    ],
    "print inside a kernel": [
        "faq/#how-do-i-print-a-value-inside-a-kernel",
        "foundations/debugging/#print-stop-assert",
    ],
    "tl.device_print": [
        "faq/#how-do-i-print-a-value-inside-a-kernel",
        "foundations/debugging/#print-stop-assert",
    ],
    "race condition": ["glossary/#race"],
    "nan from masked rows": [
        "foundations/debugging/#room-2-masked-lanes-that-join-in",
        "faq/#why-do-i-get-nan",
    ],
    "atomic add": [
        "fusion/reductions/#everything-two-stages-in-one-launch-or-atomics",
        "glossary/#atomic-operation",
    ],
    "how to benchmark a kernel": ["foundations/benchmarking/"],
    "do_bench": [
        "faq/#can-i-trust-the-benchmark-do_bench-or-cuda-graphs",
        "foundations/benchmarking/",
    ],
    "tolerance float16": ["foundations/benchmarking/#is-it-right-choosing-a-tolerance"],
    "debug_barrier": [
        "faq/#is-the-lock-in-tritons-layer-norm-tutorial-right-atomic_cas-debug_barrier",
    ],
    "license": ["faq/#may-i-copy-the-kernels-of-this-site-licence-license"],
    "launch overhead": ["glossary/#launch-overhead"],
    "roofline": ["foundations/memory_hierarchy/#the-roofline"],
    "HBM bandwidth": [
        "foundations/memory_hierarchy/#bandwidth-read-the-same-bytes-again-and-again",
    ],
    "latency of L2": ["foundations/memory_hierarchy/#latency-follow-a-trail"],
    "memory coalescing": [
        "foundations/compiler/#coalescing-and-vector-width",
        "glossary/#coalescing",
    ],
    "PTX": ["foundations/compiler/#ptx-and-sass-one-thread"],
    "occupancy": ["glossary/#occupancy"],
    "2d grid": ["foundations/programming_model/#third-kernel-an-image-turns-grey-on-a-2-d-grid"],
    "online softmax": ["glossary/#online-softmax"],
    "flash attention memory": ["attention/flash_attention/"],
    "RMSNorm residual add": ["fusion/rms_norm/"],
    "GELU": ["fusion/elementwise/#step-4-a-gelu-in-a-dozen-instructions"],
    "when should I fuse": [
        "patterns/#find-what-to-fuse",
        "fusion/elementwise/#questions-before-you-fuse",
    ],
    "estimate the speedup before writing": ["patterns/#estimate-the-gain-before-you-write-a-line"],
    "use my kernel under torch.compile": ["faq/#how-do-i-use-my-kernel-under-torchcompile"],
    "Triton vs CUDA": ["why_triton/"],
    "reading order": ["paths/"],
    "T4 V100": ["faq/#does-triton-run-on-a-t4-or-v100"],
    "does it run on windows": ["faq/#does-it-run-on-windows", "install/#windows"],
    "does it run on a mac": ["faq/#does-it-run-on-a-mac", "install/#macos"],
    "AMD GPU": ["faq/#does-it-run-on-amd-or-intel-gpus", "install/#amd"],
    "which hardware": ["install/#will-my-hardware-do"],
    "colab": ["install/#google-colab"],
    "docker": ["install/#docker"],
    "verify installation": ["install/#verify"],
    "wrong second run": ["faq/#why-is-every-run-different-or-the-second-run-wrong"],
    "matmul tutorial fails": [
        "faq/#why-does-tritons-own-matmul-tutorial-fail-its-check-allclose-fails-or-run-slowly",
    ],
    "allclose fails": [
        "faq/#why-does-tritons-own-matmul-tutorial-fail-its-check-allclose-fails-or-run-slowly",
    ],
    "skinny matrix": [
        "faq/#why-is-my-matrix-product-slow-with-few-rows-small-m-a-skinny-matrix-gemv",
    ],
    "matmul small M": [
        "faq/#why-is-my-matrix-product-slow-with-few-rows-small-m-a-skinny-matrix-gemv",
    ],
    "fp32 matmul slow": ["faq/#why-is-my-float32-fp32-matmul-slow"],
    "arange's range must be a power of 2": ["faq/#aranges-range-must-be-a-power-of-2"],
    "Conflicting meta-parameters: BLOCK": [
        "faq/#conflicting-meta-parameters-block-make-sure-that-you-dont-re-define-auto-tuned-symbols",
    ],
    "Input shapes should have M >= 1, N >= 1 and K >= 16": [
        "faq/#input-shapes-should-have-m-1-n-1-and-k-16",
    ],
    "why does my attention differ from torch's": [
        "faq/#why-does-my-attention-differ-from-torchs",
    ],
    "cpu tensor cannot be accessed from Triton": [
        "faq/#pointer-argument-at-0-cannot-be-accessed-from-triton-cpu-tensor",
    ],
}
# asks the theme's worker, as its search field does: results are pages, the best section of each
# first, and the field shows them in this order
ASK = """async questions => {
    const config = JSON.parse(document.getElementById("__config").textContent);
    const index = await fetch(`${config.base}/search/search_index.json`);
    const worker = new Worker(config.search);
    const ask = (type, data) => new Promise(answered => {
        worker.onmessage = message => answered(message.data.data);
        worker.postMessage({ type, data });
    });
    await ask(0, { ...await index.json(), options: {} });
    const found = {};
    for (const question of questions) {
        const { items } = await ask(2, question);
        found[question] = items.slice(0, 3).map(page => page[0].location);
    }
    return found;
}"""

SHOWN = """answer => [...document.querySelectorAll(".md-search-result__item:first-child a")]
    .some(link => link.href.replace(/\\?h=[^#]*/, "").endsWith(answer))"""


@pytest.fixture(scope="module")
def found(browser, base):
    """The first results of every question."""
    page = browser.new_page()
    page.goto(base)
    yield page.evaluate(ASK, list(QUESTIONS))
    page.close()


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_first_result_answers(found, question):
    assert found[question][:1] and found[question][0] in QUESTIONS[question], found[question]


def test_words_of_every_letter_and_digit_are_found(browser, base):
    # the field looks for all words with the beginning typed; none of them may break the search
    page = browser.new_page()
    page.goto(base)
    found = page.evaluate(ASK, [*string.ascii_lowercase, *string.digits])
    page.close()
    assert [beginning for beginning, answers in found.items() if not answers] == []


def test_every_answer_is_there(pages):
    for address in itertools.chain(*QUESTIONS.values()):
        page, _, section = address.partition("#")
        assert page in pages and (not section or section in pages[page].anchors), address


def test_the_field_shows_what_the_index_found(open_page):
    page = open_page("", script="")
    page.click(".md-search__input")
    # key by key: the theme listens for keys, and would notice text filled in by chance only
    question = "what does num_stages do"
    page.locator(".md-search__input").press_sequentially(question)
    # the list is drawn anew with every key: only the one that answers the whole question counts
    page.wait_for_function(SHOWN, arg=QUESTIONS[question][0])
    # the word is marked on the page that opens
    page.locator(".md-search-result__item a").first.click()
    page.wait_for_url("**/foundations/compiler/**")
    page.locator("article mark", has_text="stages").first.wait_for(state="attached")
