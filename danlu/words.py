"""The languages in which Danlu labels things: the report, the help of the command line, the kinds of errors.

One table: English text, which is the key and stands in the code -> Chinese. Messages of errors and events stay English,
so that they can be searched; so does all that recipes, data and models say. The language is chosen where the command
line begins and read where something is shown; no room in between hands it on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from danlu.errors import ConfigError

LANGUAGES = ("en", "zh")
VARIABLE = "DANLU_LANG"
# Of a system's locale, the strongest first.
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")

_chosen: ContextVar[str | None] = ContextVar("language", default=None)


class Words:
    """Texts in one language."""

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, text: str, /, **values: object) -> str:
        """`text` in this language, then `{name}` filled in. What the code says stands in the table."""
        said = text if self.language == "en" else CHINESE[text]
        return said.format(**values) if values else said

    def if_known(self, text: str) -> str:
        """`text` in this language; as it is where the table lacks it: names that a run or an option has."""
        return text if self.language == "en" else CHINESE.get(text, text)


ENGLISH = Words("en")


def words() -> Words:
    """Of the language chosen by `speaking`, else of the environment."""
    return Words(_chosen.get() or language_of(os.environ))


def language_of(environment: Mapping[str, str]) -> str:
    """What DANLU_LANG says, else the locale; English for a locale that is neither. Raises ConfigError."""
    if asked := environment.get(VARIABLE):
        return checked(asked, VARIABLE)
    locale = next((environment[name] for name in _LOCALE if environment.get(name)), "")
    return "zh" if locale.lower().startswith("zh") else "en"


def checked(language: str, where: str) -> str:
    """`language`, or a ConfigError that names the place it was given in."""
    if language not in LANGUAGES:
        raise ConfigError(f"{where} {language}", allowed=", ".join(LANGUAGES))
    return language


@contextmanager
def speaking(language: str | None) -> Iterator[None]:
    """Show all inside in this language; None leaves it to the environment."""
    token = _chosen.set(language)
    try:
        yield
    finally:
        _chosen.reset(token)


CHINESE = {
    # steps that train nothing
    "{rows} rows, {size}, built in {time}": "{rows} 行，{size}，构建用时 {time}",
    "{events} events of {users} users, learnt in {time}": "{users} 个用户的 {events} 条行为，学习用时 {time}",
    "{rows} rows counted in {time} ms": "计数 {rows} 行用时 {time} 毫秒",
    "{rows} of {among} rows picked; {repeats} repeat another": "从 {among} 行中选出 {rows} 行；{repeats} 行是重复的",
    "{rows} questions with passages; of {held_out} held out, {found} have the right one among the first {top}": (
        "{rows} 个带材料的问题；验证集的 {held_out} 个问题中，{found} 个的正确材料排在前 {top} 条"
    ),
    "{before} → {after} ({form})": "{before} → {after}（{form}）",
    "{kl} nats a token from the original, the same choice at {same} of 100": (
        "与原模型的 KL 为每 token {kl} nat，首选 token 有 {same}% 相同"
    ),
    "{measure}: {before} ({model}) → {after}, 95 % interval of the change {low} to {high}": (
        "{measure}：{before}（{model}）→ {after}，差值的 95% 置信区间为 {low} 到 {high}"
    ),
    "{form}, {size}": "{form}，{size}",
    "{citing} of {questions} answers over HTTP name a passage; {time} an answer": (
        "HTTP 接口的 {questions} 个回答中有 {citing} 个注明了材料；每个回答 {time}"
    ),
    "{right} of {known} the right one": "{known} 个中有 {right} 个注明的是正确材料",
    "ms, warm": "毫秒（热）",
    "ms, the first time": "毫秒（首次）",
    "Where-clauses": "where 条件",
    "How well it is found": "召回效果",
    "Who they are": "人群画像",
    "Answers over HTTP": "HTTP 接口的回答",
    "names": "注明的材料",
    "the right one": "正确材料",
    "time in all": "总用时",
    "steps": "步骤数",
    "question": "问题",
    "Use it": "使用方法",
    "Pictures": "图",
    # -- the report: heads and sentences
    "{sentence}.": "{sentence}。",
    "Danlu report": "丹炉报告",
    "Danlu {version}. This page reads the run directory and nothing else.": "Danlu {version}。本页只读取运行目录。",
    "<b>Not everything is here.</b> The run stopped early, or its recipe did not ask for these: {listed}.": (
        "<b>内容不全。</b>运行提前停止，或配方没有要求以下部分：{listed}。"
    ),
    "; ": "；",
    "{name} (empty or not there)": "{name}（为空或不存在）",
    "{name} ({why})": "{name}（{why}）",
    "how many examples were used": "用了多少条样本",
    "the model before training": "训练前的模型",
    "the model after training": "训练后的模型",
    "whether the change is more than chance": "变化是否超出偶然",
    "answers side by side": "回答对照",
    "whether the merged model answers like the trained one": "合并后的模型与训练时的回答是否一致",
    "where it ran": "运行环境",
    "optimizer steps": "优化步数",
    "tokens read": "读入 token",
    "of them learnt": "其中计入损失",
    "training time": "训练时间",
    "speed": "速度",
    "peak memory": "峰值内存",
    "Before and after": "训练前后对比",
    "Neither the untrained nor the trained model was measured.": "训练前后的模型都没有测量。",
    "An interval that excludes zero is a change beyond chance.": "置信区间不含 0，说明变化超出偶然。",
    "Measured on {number} held-out examples, which training never saw. An interval that excludes zero is a change "
    "beyond chance.": "在 {number} 条训练从未见过的验证集样本上测量。置信区间不含 0，说明变化超出偶然。",
    "measure": "指标",
    "before": "训练前",
    "after": "训练后",
    "change": "变化",
    "interval of the change": "变化的置信区间",
    "Training": "训练过程",
    "No step was recorded in metrics.jsonl.": "metrics.jsonl 中没有任何一步的记录。",
    "Answers side by side": "回答对照",
    "No answers were kept.": "没有保存回答。",
    "Prompt": "提示词",
    "key": "字段",
    "default": "默认值",
    "meaning": "含义",
    "Reference": "参考答案",
    "Before training": "训练前",
    "After training": "训练后",
    "not recorded": "未记录",
    "(an empty text)": "（空文本）",
    "What was decided, and why": "做了哪些决定，为什么",
    "No decision was recorded in events.jsonl.": "events.jsonl 中没有决定的记录。",
    "time (UTC)": "时间（UTC）",
    "event": "事件",
    "reason": "原因（英文，便于检索）",
    "details": "细节",
    "Data": "数据",
    "Merged against trained": "合并前后的一致性校验",
    "Machine": "机器",
    "Whole run": "整次运行",
    "Recipe": "配方",
    "recipe.yaml is not there.": "没有 recipe.yaml。",
    # -- the report: the verdict
    "held-out loss": "验证集损失",
    "perplexity": "困惑度",
    "character overlap with the references (chrF)": "与参考答案的字符重合度（chrF）",
    "answers that ended by themselves, of 100": "每 100 个回答中自己结束的",
    "loss of held-out pairs": "验证集偏好对的损失",
    "held-out pairs judged rightly, of 100": "每 100 个验证集偏好对中判断正确的",
    "gap of rewards between better and worse answers": "优劣回答的奖励差",
    "reward of answers to held-out prompts": "验证集提示词上回答的奖励",
    "distance from the reference, nats an answer": "与参考模型的 KL（nat/回答）",
    "Reward of answers": "回答的奖励",
    "Distance from the reference": "与参考模型的 KL",
    "nats an answer": "nat/回答",
    "Gap of rewards": "奖励差",
    "Pairs judged rightly": "判断正确的偏好对",
    "Entropy": "熵",
    "nats a token": "nat/token",
    "Length of answers": "回答长度",
    "Answers cut off": "被截断的回答",
    "share": "比例",
    "Tokens clipped": "被裁剪的 token",
    "Engine against trainer": "引擎与训练器的概率比",
    "ratio": "比值",
    "Reward model": "奖励模型",
    "Sureness against being right": "把握与判断正确率",
    "sureness": "把握",
    "Loss by size": "损失与大小",
    "Loss by speed": "损失与速度",
    "perplexity over the original's in %; pale: the upper end of its interval, and what is allowed": (
        "困惑度比原模型高多少（%）；浅色为置信区间的上限，以及允许的损失"
    ),
    "Search for the learning rate": "学习率搜索",
    "{steps} steps": "{steps} 步",
    "log10 of the rate": "学习率的 log10",
    "held-out loss of short forks; long runs want a lower rate": "各个短分叉的验证损失；训练越长，合适的学习率越低",
    "share of held-out pairs judged rightly; on the pale line it knows its doubt": (
        "验证集偏好对中判断正确的比例；落在浅色线上说明把握有据"
    ),
    "No verdict: {name} was not measured before training": "无法判断：训练前没有测量{name}",
    "No verdict: {name} was not measured after training": "无法判断：训练后没有测量{name}",
    "No verdict: {name} was not measured before or after training": "无法判断：训练前后都没有测量{name}",
    "{name} went from {before} to {after}; whether that is chance was not measured": (
        "{name}从 {before} 变为 {after}；没有测量这一变化是否出于偶然"
    ),
    "{name} did not change clearly, from {before} to {after}: the {level} % interval of the change {spread} "
    "contains zero": ("{name}没有明显变化（{before} → {after}）：变化的 {level} % 置信区间 {spread} 包含 0"),
    "{name} fell from {before} to {after} ({level} % interval of the change {spread})": (
        "{name}从 {before} 降到 {after}（变化的 {level} % 置信区间 {spread}）"
    ),
    "{name} rose from {before} to {after} ({level} % interval of the change {spread})": (
        "{name}从 {before} 升到 {after}（变化的 {level} % 置信区间 {spread}）"
    ),
    # -- the report of a chain
    "Steps": "步骤",
    "kind": "类型",
    "works on": "起点",
    "state": "状态",
    "time": "用时",
    "what came of it": "结果",
    "done": "完成",
    "begun, not done": "已开始，未完成",
    "not begun": "未开始",
    "{prompts} answers equal, logits within {difference}": "{prompts} 个回答一致，logits 最大相差 {difference}",
    # -- the report: figures
    "Loss": "损失",
    "nats a token, of the tokens to be learnt": "每个计入损失的 token，单位 nat",
    "Learning rate": "学习率",
    "Gradient norm": "梯度范数",
    "Speed": "速度",
    "Memory": "内存",
    "peak of the step": "本步峰值",
    "at its end": "本步结束时",
    "GiB; the peak of each step, and pale what it held at its end": "GiB；每步的峰值，浅色为该步结束时的占用",
    "tokens/s": "token/秒",
    "step": "步",
    "each step": "每一步",
    "training": "训练",
    "training, smoothed": "训练（平滑）",
    "held out": "验证集",
    "training loss": "训练损失",
    "{title} by step: {numbers}": "{title}随步数变化：{numbers}",
    "{name} from {first} at first to {last} at last, lowest {low}, highest {high}": (
        "{name}从开始的 {first} 到最后的 {last}，最低 {low}，最高 {high}"
    ),
    # -- the report: values and names of results.json
    "yes": "是",
    "no": "否",
    "not a number": "非数（NaN）",
    "infinite": "无穷大（Inf）",
    "train": "训练样本",
    "tokens": "token 数",
    "learnt tokens": "计入损失的 token",
    "skipped": "跳过的行",
    "device": "设备",
    "cores": "核数",
    "dtype": "数据类型（dtype）",
    "trained parameters": "可训练参数",
    "all parameters": "全部参数",
    "seconds": "秒",
    "peak memory bytes": "峰值内存（字节）",
    # -- the command line
    "Usage: ": "用法：",
    "Commands": "命令",
    "Arguments": "参数",
    "Parameters": "选项",
    "Display this message and exit.": "显示本帮助。",
    "Display application version.": "显示版本。",
    "Danlu (丹炉): from raw data to a language model that serves your domain. In Chinese: --lang zh.": (
        "丹炉：从原始数据到服务于你的领域的语言模型。显示英文：--lang en。"
    ),
    "Look at data before training on it.": "训练前查看数据。",
    "What a training takes, before it: arithmetic alone, without weights.": ("训练之前估算：只做算术，不需要权重。"),
    "Rank, alpha and learning rate, advised together, each with its source; needs no weights.": (
        "一并给出秩、alpha 和学习率的建议，逐条注明出处；不需要权重。"
    ),
    "How many weights an adapter trains, layer by layer; needs no weights.": (
        "逐层列出适配器训练多少参数；不需要权重。"
    ),
    "Recipes out of what other tools were told.": "由其他工具的配置生成配方。",
    "Turn the settings of LLaMA-Factory, axolotl, ms-swift or TRL into a recipe.": (
        "把 LLaMA-Factory、axolotl、ms-swift 或 TRL 的配置转换为配方。"
    ),
    "Run a recipe: a shipped one by name, or a YAML file.": "运行配方：自带配方的名字，或 YAML 文件。",
    "Train with options given as flags instead of a recipe.": "不写配方，用命令行选项训练。",
    "The flags are the keys of a recipe; the resolved recipe is kept in the run directory.": (
        "选项就是配方的字段；最终的配方保存在运行目录中。"
    ),
    "Answer one prompt.": "回答一个提示词。",
    "Answer a question from the passages of a collection, and name them.": "根据集合中的段落回答问题，并注明出处。",
    "Talk with a model.": "与模型对话。",
    "Answer over HTTP as OpenAI's API does.": "启动兼容 OpenAI 接口的 HTTP 服务。",
    "Open pages in a browser: runs as they go, how tokens are chosen, memory, data, collections, evaluations.": (
        "在浏览器中打开页面：查看训练过程、解码细节、显存规划、数据、召回与评估。"
    ),
    "Fold an adapter into its base model, and prove that both answer alike.": (
        "把适配器合并进基座模型，并做一致性校验。"
    ),
    "Write an adapter for another program: llama.cpp reads GGUF.": "把适配器导出给其他程序：llama.cpp 读取 GGUF。",
    "Write a model in few bits, compared with the original.": "量化模型，并与原模型对比校验",
    "Write a model for another program: GGUF, or its codes in another format.": (
        "把模型导出给其他程序：GGUF，或把量化编码换成另一种格式。"
    ),
    "Write a model for another program: GGUF for llama.cpp, or codes that are there already in another format.": (
        "把模型导出给其他程序：供 llama.cpp 使用的 GGUF，或把已有的量化编码换成另一种格式。"
    ),
    "List the keys of a recipe of one kind, with their defaults.": "列出某种训练的配方的全部字段和默认值。",
    "List the models known by name.": "列出可以直接用名字的模型。",
    "Write the report of a run directory anew.": "重新生成运行目录的报告。",
    "How a data file is read, what is learnt of it, lengths, duplicates and faults.": (
        "数据文件怎样读取、哪些计入损失，以及长度、重复和错误。"
    ),
    # -- danlu data check
    "read as": "读取方式",
    "files": "文件",
    "file not read": "未读取的文件",
    "describes the data": "数据说明文件",
    "no kind of data file that is read": "不支持的文件类型",
    "a link to a folder": "指向文件夹的链接",
    "held out by its name: data.held_out_path reads it; to train on it, name the file itself in data.path": (
        "文件名表明它是验证集或测试集：用 data.held_out_path 读取；要用来训练，请在 data.path 中直接写出该文件"
    ),
    "not held out by its name": "文件名表明它不是验证集或测试集",
    "keys not read": "未读取的字段",
    "lengths are in characters; for tokens, name a model: --model {model}": (
        "长度按字符计；要按 token 计，请指定模型：--model {model}"
    ),
    "an empty system turn is left out": "去掉空的 system 轮",
    "turns of one speaker in a row are joined": "同一角色连续的多轮合并为一轮",
    "a text and the calls after it are one turn": "文本与其后的工具调用合并为一轮",
    "what the assistant says before the first question is context": "第一个问题之前的回答只作上下文，不计入损失",
    "turns after the last answer are cut off": "去掉最后一个回答之后的轮次",
    "an empty pair in the history is left out": "去掉历史记录中的空问答",
    "labelled false: for preference by label, an error where answers are imitated": (
        "label 为 false：用于按标签的偏好训练（KTO）；用于监督微调时报错"
    ),
    "min": "最小",
    "p50": "p50",
    "p90": "p90",
    "p99": "p99",
    "max": "最大",
    "mean": "平均",
    "{record}, {how}; {mark}": "{record}，{how}；{mark}",
    # -- danlu plan
    "layer": "层",
    "inputs": "输入",
    "outputs": "输出",
    "how many": "个数",
    "of each": "每层参数",
    "trained": "训练参数",
    "times fewer": "减少倍数",
    "{model}: {trained} of {all} weights are trained, {share}; {times} times fewer": (
        "{model}：训练 {all} 个参数中的 {trained} 个（{share}），为全参数的 1/{times}"
    ),
    "under AdamW they take {lora} ({each} bytes each), all weights {full}; the adapter's file {file}": (
        "训练时连同梯度和 AdamW 状态占 {lora}（每个参数 {each} 字节），全参数则为 {full}；适配器文件 {file}"
    ),
    "option": "选项",
    "advised": "建议值",
    "why": "理由",
    "source": "出处",
    "the notes": "笔记中的说法",
    "a place to start looking: the held-out loss decides": "这只是搜索的起点：以验证集损失为准",
    "as it was given": "由你给定",
    "rewards say little: rank 1 already equals full tuning": "奖励的信息量很少：秩为 1 已与全参数相当",
    "the usual one; give the learnt tokens for another": "常用值；给出计入损失的 token 数可另作建议",
    "{trained} trained weights for {tokens} learnt tokens: LoRA keeps up while there are as many": (
        "{trained} 个训练参数，{tokens} 个计入损失的 token：参数不少于 token 时 LoRA 不落后于全参数"
    ),
    "{trained} trained weights are too few for {tokens} learnt tokens: tune all weights (lora: null)": (
        "{trained} 个训练参数少于 {tokens} 个计入损失的 token，跟不上：改用全参数微调（lora: null）"
    ),
    "alpha / r is then 2": "此时 alpha / r 为 2",
    "alpha / sqrt(r) is then 2": "此时 alpha / √r 为 2",
    "the best of models of that size, for scale 2, and as 1 / scale: A starts at 1 / r; no sweep of this start is "
    "known; full tuning {full}": (
        "同规模模型的最佳值，对应缩放系数 2，与系数成反比：A 的初始标准差为 1/r；"
        "这种初始化没有公开的扫描结果；全参数为 {full}"
    ),
    "the best of models of that size at alpha = 32, times 32 / alpha, whatever r; full tuning {full}": (
        "同规模模型在 alpha = 32 时的最佳值乘以 32 / alpha，与 r 无关；全参数为 {full}"
    ),
    "short runs at each, compared by held-out loss": "各跑一小段，比较验证集损失",
    "attention alone is worse even with as many trained weights": "只加在注意力上更差，即使训练参数一样多",
    "it would blur the difference that is learnt": "会模糊要学的差别",
    "helps at 7B and 13B and on small data, not at 33B and 65B": "对 7B、13B 和小数据有用，对 33B、65B 无用",
    "LoRA loses more than full tuning at large batches, and no rank mends it": (
        "batch 大时 LoRA 的损失比全参数更大，提高秩也无济于事"
    ),
    "4 to 8; 16 better, 256 best for varied data": "4–8；16 更好，数据多样时 256 最好",
    "1 to 2 r": "r 的 1–2 倍",
    "3e-4": "3e-4",
    "1e-3 to 1e-6 around 1e-4": "1e-4 附近，1e-3 到 1e-6",
    "all layers, not keys and values alone": "所有层，而不只是 K 和 V",
    "0.05": "0.05",
    "128 by accumulation": "通过梯度累积达到 128",
    "the head is tied to the embedding: a merge gives it weights of its own": (
        "输出头与词嵌入共享权重：合并后各自独立"
    ),
    # -- the picture of decoding
    "held-out examples": "验证集样本",
    "no knobs": "无参数",
    "answer {number}, token by token": "回答 {number}，逐 token",
    "{count} more tokens: --show_tokens {all}": "另有 {count} 个 token：--show_tokens {all}",
    "rank": "排名",
    "dropped by": "筛除者",
    "at the end": "最终",
    "dropped {count} tokens, {left} left": "筛除 {count} 个 token，剩 {left} 个",
    "also dropped {tokens}": "还筛除了 {tokens}",
    "{count} more pruned": "另剪掉 {count} 支",
    "open at the end": "未结束",
    "goes on to answer {numbers}": "继续，成为回答 {numbers}",
    "goes on": "继续",
    "answer {number}": "回答 {number}",
    "kept": "保留",
    "displaced": "被取代",
    "score": "得分",
    "changed": "读取时的改动",
    "format": "格式",
    "records": "记录",
    "faulty rows": "有错的行",
    "turns": "轮次",
    "duplicates": "重复记录",
    "same question": "相同问题",
    "{count} with different answers": "{count} 个问题有不同的回答",
    "near-duplicates": "近似重复",
    "{count} of {of} nearly repeat an earlier one": "{of} 条中有 {count} 条与前面的某条近似重复",
    "; {count} later records were not compared": "；其后的 {count} 条没有比较",
    "groups": "分组",
    "{path}: of {records} records, {whole} are here too, {asked} with their question": (
        "{path}：{records} 条记录中，{whole} 条整条出现在本数据里，{asked} 条的问题出现在本数据里"
    ),
    "lengths": "长度",
    "characters": "字符",
    "; nothing is learnt of {count} records": "；{count} 条记录没有计入损失的部分",
    "learnt": "计入损失",
    "too long": "超长",
    "{count} examples over {limit} tokens: cut, they lose {lost}; as windows, they are {windows}": (
        "{count} 条样本超过 {limit} 个 token：截断会丢掉 {lost} 个；切成窗口为 {windows} 段"
    ),
    " ({learnt} learnt, {context} not)": "（{learnt} 轮计入损失，{context} 轮不计入）",
    "the first record": "第一条记录",
    "the first record, its worse answer": "第一条记录的较差回答",
    "as the model will see it": "模型看到的样子",
    "as it was read (--model renders it)": "读取到的内容（加 --model 可按模板渲染）",
    "what is learnt is green": "绿色为计入损失的部分",
    "what is learnt stands in {+ +}": "{+ +} 内为计入损失的部分",
    "[… {count} characters left out …]": "［…… 省略 {count} 个字符 ……］",
    "[… {count} tokens left out …]": "［…… 省略 {count} 个 token ……］",
    "and {count} more": "另有 {count} 条",
    "next": "建议",
    "{place} nearly repeats {earlier} ({alike})": "{place} 与 {earlier} 近似重复（{alike}）",
    # -- what a training takes, before it
    "its files are quantized ({form}); counted as they are held": "模型文件是量化的（{form}）；按量化后的大小计算",
    "its files are quantized ({form}); counted here in {dtype}": "模型文件是量化的（{form}）；这里按 {dtype} 计算",
    "keys and values as transformers keeps them; as their latent alone {size}": (
        "KV 按 transformers 的方式保存；只保存 MLA 的潜变量时为 {size}"
    ),
    "part": "组成部分",
    "memory": "内存/显存",
    "how it is counted": "怎么算",
    "in all": "合计",
    "{model}: {all} weights ({parts})": "{model}：参数量 {all}（{parts}）",
    "a token passes {active} of them; all are held": "每个 token 只经过其中 {active} 个参数，但全部参数都要放进显存",
    "the notes' rule, 2 bytes a weight: {size}": "笔记的规则，每个参数 2 字节：{size}",
    "embedding": "词嵌入",
    "attention": "注意力",
    "feed-forward": "前馈网络",
    "experts": "专家",
    "norms": "归一化",
    "head": "输出头",
    "weights": "参数",
    "linear layers": "线性层",
    "embedding and head": "词嵌入与输出头",
    "other weights": "其余参数",
    "float32 copies": "float32 主参数",
    "adapter": "适配器",
    "optimizer": "优化器状态",
    "gradients": "梯度",
    "activations": "激活值",
    "logits": "logits",
    "way back": "反向传播的中间值",
    "of one block, when the logits are gone": "一层的，此时 logits 已释放",
    "tokenizer": "分词器",
    "in main memory, where the model is as well": "在内存中（模型也在内存中时）",
    "dequantized": "反量化缓冲",
    "KV cache": "KV Cache",
    "allocator": "分配器碎片",
    "runtime": "运行环境",
    "{bytes} bytes a weight": "每个参数 {bytes} 字节",
    "{bits} bits a weight with its scales": "每个参数 {bits} bit（含缩放系数）",
    "embedding and norms: {bytes} bytes a weight": "词嵌入与归一化：每个参数 {bytes} 字节",
    "embedding, head, norms and experts: {bytes} bytes a weight": "词嵌入、输出头、归一化与专家：每个参数 {bytes} 字节",
    "norms and routers: {bytes} bytes a weight": "归一化与路由：每个参数 {bytes} 字节",
    "embedding, head, norms and routers: {bytes} bytes a weight": "词嵌入、输出头、归一化与路由：每个参数 {bytes} 字节",
    "of weights that are computed with in 16 bits": "以 16 bit 计算的参数的主副本",
    "{count} weights and their gradients": "{count} 个参数及其梯度",
    "what it keeps of each trained weight": "每个可训练参数的优化器状态",
    "what {blocks} blocks keep of {tokens} tokens for the way back": (
        "{blocks} 层为 {tokens} 个 token 的反向传播保留的值"
    ),
    "the states between {blocks} blocks, of {tokens} tokens": "{tokens} 个 token 在 {blocks} 层之间的隐藏状态",
    "the states between {blocks} blocks, and one block whole, of {tokens} tokens": (
        "{tokens} 个 token 在 {blocks} 层之间的隐藏状态，加上完整的一层"
    ),
    "of the passes before": "之前各次前向累积的梯度",
    "of all weights": "全部参数的梯度",
    "of one block": "一层的激活值",
    "scores of {vocabulary} tokens, their float32 copy and gradient, for {tokens} tokens at a time": (
        "词表 {vocabulary} 的 logits、其 float32 副本与梯度，一次 {tokens} 个 token"
    ),
    "the largest layer, as it is computed with": "最大的一层反量化之后",
    "{share} of what is allocated lies in holes": "已分配量的 {share} 是碎片",
    "with nothing loaded": "什么都没加载时",
    "keys and values of {tokens} tokens, {bytes} bytes a number": "{tokens} 个 token 的 KV，每个数 {bytes} 字节",
    "of one step, float32, twice": "一步的 logits，float32，两份",
    "where the loss is known": "峰值在算出损失时",
    "where the last gradients are made": "峰值在反向传播结束时",
    "with a full cache": "峰值在 KV Cache 填满时",
    "what": "做什么",
    "with {length} tokens": "{length} 个 token 时",
    "fits": "放得下",
    "tokens at most": "最多 token",
    "all weights": "全参数",
    "8-bit AdamW": "8 bit AdamW",
    "checkpointing": "梯度检查点",
    "LoRA": "LoRA",
    "QLoRA": "QLoRA",
    "answering": "推理",
    "{bits} bit": "{bits} bit",
    "{model} in {size}": "{model}，{size}",
    "the largest that fits: {what}": "放得下的最大方案：{what}",
    "nothing of it fits: take a smaller model, or shorter texts": "都放不下：换更小的模型，或缩短文本",
    "the notes, of {size}: {bits} bit costs {loss}": "笔记，{size}：{bits} bit 损失 {loss}",
    "by the notes, for {loss} at most: {bits} bit": "按笔记，损失不超过 {loss}：用 {bits} bit",
    "8B": "8B 模型",
    "70B": "70B 模型",
    "family": "模型系列",
    "bits": "bit",
    "loss": "损失",
    "tasks": "任务得分",
    "{family}: no published perplexity is that small": "{family}：已发表的困惑度损失没有这么小的",
    "{family}: published figures say {bits} bit ({form}), not {notes}": (
        "{family}：已发表的数据要求 {bits} bit（{form}），不是 {notes}"
    ),
    "{family}: published figures agree ({form})": "{family}：已发表的数据与笔记一致（{form}）",
    "{model} is not on this machine: tokens are told from characters": "{model} 不在本机：按字符数估算 token",
    "families differ; what your own text loses, a measurement says": "各系列不同；自己的文本上损失多少，要实际测量",
    # -- errors: what kind, with the name that can be searched
    # -- collections
    "{count} of {all} rows, in {time} ms": "{all} 行中的 {count} 行，用时 {time} 毫秒",
    "passages:": "引用的段落：",
    "tag in": "写入标签列",
    "{count} ids": "{count} 个 id",
    "{count} rows deleted": "已删除 {count} 行",
    "{count} ids that no row has were passed over": "跳过 {count} 个不存在的 id",
    "{channel}: {rows} of the rows found, in {time} ms": "{channel}：召回结果中的 {rows} 行，用时 {time} 毫秒",
    "{count} of {all} rows that qualify": "符合条件的 {all} 行中的 {count} 行",
    "{count} of {all} rows that qualify; of {looked} that were compared, {empty} have no text and {repeats} repeat "
    "another": (
        "符合条件的 {all} 行中选出 {count} 行；比较过 {looked} 行，其中 {empty} 行无文本，{repeats} 行与前面的近似重复"
    ),
    "like {count} examples, taking turns": "与 {count} 条样例相近，各样例轮流选取",
    "{path}: {rows} rows, {columns} columns, {segments} segment(s), {size}": (
        "{path}：{rows} 行，{columns} 列，{segments} 个段，{size}"
    ),
    "{known} of {rows} known": "{rows} 行中有值的 {known} 行",
    "rows": "行数",
    "where-clause": "条件",
    "{path}: {events} events of {users} users with {items} items, {known} of them rows; {channels}": (
        "{path}：{users} 个用户对 {items} 个物品（其中 {known} 个是集合的行）的 {events} 个行为事件；{channels}"
    ),
    "{count} events stood there twice and count once": "{count} 个事件重复出现，只计一次",
    "{count} ids in the labels are no rows": "标注中有 {count} 个 id 不是集合的行",
    "{what}: {questions} questions": "{what}：{questions} 个查询",
    "leave one out": "留一法",
    "by time": "按时间切分",
    "labels": "标注",
    "channel": "召回通道",
    "recall": "召回率",
    "precision": "精确率",
    "hit rate": "命中率",
    "coverage": "覆盖率",
    "alone": "独有贡献",
    "p50 ms": "p50 毫秒",
    "p99 ms": "p99 毫秒",
    "Recall at k, over {questions} questions": "recall@k，共 {questions} 个查询",
    "when it was made": "创建时",
    "on": "日期",
    "value": "值",
    "share among all": "总体占比",
    "TGI": "TGI",
    "95 % interval": "95% 区间",
    "failed": "未评出",
    "scores": "得分分布",
    "#mean": "#均值",
    "#95 % interval": "#95% 区间",
    "#rows": "#行数",
    "#failed": "#未评出",
    "why they failed": "未评出的原因",
    "{rows} rows, judged by {judge}": "共 {rows} 行，由 {judge} 评判",
    "Measures": "评估指标",
    "Beside them: the cheap baseline": "对照：低成本基线",
    "#difference": "#差值",
    "#smallest that would show": "#可检出的最小差值",
    "row": "行",
    "#score": "#得分",
    "#expectation": "#期望",
    "#doubt": "#不确定性",
    "distribution": "分布",
    "answer": "回答",
    "the first {shown} of {all}, failures and low scores first": "前 {shown} 行，共 {all} 行；未评出和低分的在前",
    "judge": "评审模型",
    "baseline": "基线",
    "judge minus baseline": "评审减基线",
    "correlation": "相关系数",
    "language": "语言",
    "ratings in the 90 % interval: {share}": "落在 90% 区间内的评分：{share}",
    "calibration error {error}, the rating itself {accuracy}": "校准误差 {error}，与评分相同 {accuracy}",
    "left out: {count}": "未计入：{count}",
    "fitted to: {names}": "所用特征：{names}",
    "the same answers, changed in one way": "同样的回答，只改一处",
    "the expectation changes by": "期望的变化",
    "padding": "加入空话",
    "an order to the judge": "写给评审模型的指令",
    "an empty answer": "空回答",
    "another language": "另一种语言",
    "without {hits} rows that share 13 words with the training data:": "去掉与训练数据有 13 个词相同的 {hits} 行：",
    "beside {model}": "与 {model} 对比",
    "difference": "差值",
    "smallest that would show": "可检出的最小差值",
    "{win} won, {tie} tied, {loss} lost; {flips} went with the order": "{win} 胜 {tie} 平 {loss} 负；"
    "{flips} 次随顺序改变",
    "win rate": "胜率",
    "error:": "错误",
    "allowed:": "允许：",
    "next:": "建议：",
    "ConfigError": "配方、选项或参数有误",
    "DataError": "数据、文件或数据源有误",
    "ModelError": "模型找不到、读不了或不能用",
    "UnknownModel": "没有这个模型",
    "DownloadError": "模型文件没有完整取到本机",
    "InUse": "另一个进程正在写",
    "ResourceError": "机器资源不足",
    "DiskError": "磁盘空间、权限或路径问题",
    "MemoryShortage": "内存不足",
    "TrainingError": "训练出错",
    "ParityError": "一致性校验没有通过",
    "AllBanned": "所有 token 都被参数禁止，无法继续生成",
    "FaultyScores": "模型输出的 logits 不是有效数值",
    "ProcessLost": "同一训练的另一个进程已退出",
    "GateFailed": "评估没有达标",
    "NotJudged": "有些行评不出分，无法判断是否达标",
    "Interrupted": "已按用户要求停止",
    "DanluError": "出错",
}
