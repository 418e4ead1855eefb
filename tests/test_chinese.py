"""Chinese pages use the words that engineers use: one word for one thing, the field's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.zh.md"))]

# What is refused, as a regular expression -> what to write instead.
INSTEAD = {
    "调教": "微调",
    "训练医生": "训练诊断",
    "模型站": "模型社区",
    "被学习的": "计入损失的",
    "留出": "验证集",
    "一致性(关卡|检查)": "一致性校验",
    "(?<![关按])键(?!盘)": "字段；KV Cache",
    "自动找批大小": "自动搜索 batch size",
    "非有限的步": "损失或梯度为 NaN/Inf 时不更新参数",
    "数字格式": "数据类型（dtype）；量化",
    "开头相同的提示(?!词)": "前缀缓存（prefix caching）",
    "KV ?缓存": "KV Cache",
    "回答的(格式|形式)": "结构化输出",
    "必须出现的(词|短语)": "强制词（约束解码）",
    "换父行": "重排束时不复制 KV",
    "抽(样|取|到的)": "采样",
    "提示(?!词)": "提示词（prompt）；报错",
    "向量(模型|接口|请求)": "Embedding（向量）",
    "用对方的说法": "转换为后端的参数格式后转发",
    "指名的错误": "报错并指明参数",
    "没有哪个回答取决于": "不影响生成结果",
    "何时再来": "多久后重试",
    "基础模型|基座(?!模型)": "基座模型",
}
# On the page about HTTP alone: elsewhere a path is one of files.
OF_HTTP = {"路径": "接口"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_word_that_engineers_do_not_use(page):
    refused = INSTEAD | (OF_HTTP if page.name == "serving.zh.md" else {})
    lines = page.read_text("utf-8").splitlines()
    found = [
        f"{page.name}:{number}: {match[0]} -> {instead}"
        for number, line in enumerate(lines, 1)
        for pattern, instead in refused.items()
        for match in re.finditer(pattern, line)
    ]
    assert found == []


def test_the_patterns_find_what_they_refuse_and_leave_what_is_right():
    refused = "|".join(INSTEAD)
    for wrong in ("配方里的一个键", "提示的长度", "与基座合并", "系统提示", "键和值", "留出损失"):
        assert re.search(refused, wrong), wrong
    for right in ("关键字", "提示词的长度", "与基座模型合并", "验证集损失", "KV Cache", "采样", "键盘"):
        assert not re.search(refused, right), right
