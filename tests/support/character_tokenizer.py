"""A tokenizer with one piece per character, built without downloads; stands in for those of Llama, CLIP and Qwen."""

import string

CHARACTERS = string.ascii_lowercase + string.digits + ".,!?'\"-:;()<>|_/[]{} \n" + string.ascii_uppercase
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(model_max_length, begin=False, end=False, chat=False):
    """Special tokens are 0 begin, 1 padding, 2 end, 3 unknown; `begin` and `end` say which ones are added."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "<pad>", "</s>", "<unk>", *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>"] * begin + ["$A"] + ["</s>"] * end, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=model_max_length,
    )
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
