"""The words of a made-up Chinese shop, for the attribute world (docs/chinese.md). Brands are invented.

No word stands in another one, nor across the border of two others, as texts are written without spaces: a word of a
rationale is found in a text exactly where it was written.
"""

from __future__ import annotations

from jax_rele.data.synthetic.catalogue import Lexicon

CHINESE = Lexicon(
    words=(
        (
            *(("书包", "背囊"), ("运动鞋", "球鞋"), ("雨衣", "雨披"), ("围巾", "围脖")),
            *(("笔袋", "文具盒"), ("短袜", "袜子"), ("雨靴", "水鞋"), ("针织帽", "毛线帽")),
        ),
        (
            ("云岚", "Yunlan"),
            ("拓野", "Tuoye"),
            ("沐禾", "Muhe"),
            ("青屿", "Qingyu"),
            ("铭峰", "Mingfeng"),
            ("糖朵", "Tangduo"),
        ),
        (("红色", "朱红"), ("黑色", "墨黑"), ("蓝色", "天蓝"), ("白色", "米白")),
        (("纯棉", "全棉"), ("尼龙", "锦纶"), ("涤纶", "聚酯"), ("橡胶", "乳胶")),
        (("大号", "大码"), ("中号", "中码"), ("小号", "小码")),
        (("男士", "男款"), ("女士", "女款"), ("儿童", "童款")),
    ),
    fillers=(
        *("新品", "包邮", "正品", "热卖", "旗舰店", "官方", "特价", "现货", "升级版", "耐用", "轻便", "时尚"),
        *("百搭", "经典", "外贸", "精选", "人气", "爆款", "清仓", "直营", "加厚", "透气", "限量", "当季"),
    ),
    complements=(4, 5, 6, 7, 0, 1, 2, 3),
    joiner="",
)
"""School bags go with pencil cases, sports shoes with socks, raincoats with rain boots, scarves with knitted hats."""
