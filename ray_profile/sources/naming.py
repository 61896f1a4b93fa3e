"""What shops call things, in English and Chinese: column names of the contract, and words for what a row is."""

from __future__ import annotations

import re
import unicodedata

_SPELT: dict[str, str] = {
    "user_id": (
        "userid customerid custid memberid householdid buyerid shopperid clientid reviewerid accountid "
        "visitorid customeruniqueid uid openid unionid user customer member buyer reviewer client "
        "customerno customernumber memberno username customeremail useremail email emailaddress 用户id "
        "用户编号 会员id 会员编号 会员号 会员卡号 买家id 买家昵称 买家会员名 买家账号 顾客id 顾客编号 "
        "客户id 客户编号 用户 会员 买家 顾客 客户 用户名 账号 手机号"
    ),
    "ts": (
        "timestamp eventtime eventtimestamp transactiontimestamp unixreviewtime timestampms "
        "orderpurchasetimestamp invoicedate orderdate ordertime purchasedate purchasetime transactiondate "
        "reviewtime reviewdate eventdate ts datetime time date createdat createtime createdtime "
        "creationdate submitteddate ordereddate paidat paytime 下单时间 订单时间 订单创建时间 购买时间 "
        "交易时间 付款时间 支付时间 评价时间 评论时间 行为时间 事件时间 创建时间 发生时间 下单日期 订单日期 "
        "交易日期 评价日期 评论日期 时间 时间戳 日期"
    ),
    "order_id": (
        "orderid orderno ordernumber invoiceno invoiceid invoicenumber invoice basketid transactionid "
        "receiptid receiptno salesorder order 订单id 订单号 订单编号 主订单编号 交易号 交易编号 单号"
    ),
    "rating": (
        "rating starrating reviewrating reviewscore stars star overall score ratings 评分 星级 打分 分数 "
        "评价星级 评价分数"
    ),
    "quantity": ("quantity qty itemquantity orderquantity numberofitems units pieces 数量 件数 购买数量 商品数量 销量"),
    "price": ("unitprice price itemprice saleprice sellingprice priceusd listprice 单价 价格 售价 商品价格 销售价"),
    "amount": (
        "amount linetotal totalprice totalamount salesvalue dollarvalue revenue sales spend total "
        "lineamount 金额 总价 总金额 实付金额 付款金额 销售额 小计"
    ),
    "text": (
        "reviewtext reviewbody reviewcontent reviewcomment reviewcommentmessage comment comments review "
        "text content body feedback 评论内容 评价内容 评价正文 评论 评价 内容 评论正文"
    ),
    "title": (
        "reviewtitle reviewheadline reviewsummary reviewcommenttitle headline summary title 评论标题 评价标题 标题"
    ),
    "item_id": (
        "itemid productid parentasin asin sku skuid stockcode goodsid articleid spuid upc ean isbn "
        "productcode itemcode item product 商品id 商品编号 商品编码 产品id 产品编号 货号 宝贝id 商品 产品 "
        "宝贝"
    ),
    "item_title": (
        "itemtitle itemname producttitle productname productdisplayname goodsname description "
        "itemdescription productdescription 商品名称 商品标题 商品名 产品名称 宝贝标题 宝贝名称 品名"
    ),
    "kind": (
        "behaviortype behavior behaviour eventtype event actiontype action eventname activity interaction "
        "interactiontype type 行为类型 行为 事件类型 事件 操作类型 操作 动作"
    ),
    "query": "query searchquery searchterm searchtext keyword keywords 搜索词 搜索内容 关键词",
    "brand": "brand brandname manufacturer vendor 品牌 品牌名称 厂商",
    "place": (
        "city region province state country location geohash usergeohash place storeid store shop 城市 省份 "
        "地区 国家 收货城市 收货省份 所在地 门店 店铺"
    ),
    "device": "device devicetype platform os useragent 设备 设备类型 终端 平台",
    "id": "reviewid eventid logid commentid 评论id 评价id 事件id 日志id id rowid",
}
#: Contract column -> what files call it, the most telling name first. Written as `normal` writes names.
NAMES = {column: tuple(words.split()) for column, words in _SPELT.items()}

#: Levels of a category path, coarse to fine; all that a file has are joined.
CATEGORY_LEVELS: tuple[tuple[str, ...], ...] = tuple(
    tuple(level.split())
    for level in (
        "categories categorypath categoryname 类目路径",
        "division divisionname 一级类目 一级分类 大类",
        "department departmentname mastercategory maincategory categorylevel1 category1 l1category",
        "category productcategory itemcategory categoryid itemcategoryid cat 类目 分类 品类 商品类目 商品分类 类别",
        "subcategory subdepartment categorylevel2 category2 l2category 二级类目 二级分类 中类",
        "class classname producttype articletype categorylevel3 category3 l3category commodity 三级类目 三级分类 小类",
    )
)

#: What people may name about an item.
_ATTRIBUTES = (
    "color colour basecolour size packagesize material season style flavor flavour usage gender "
    "颜色 尺码 规格 材质 款式 季节 口味 属性"
)
ATTRIBUTES = frozenset(_ATTRIBUTES.split())

#: Words for what a row is -> the contract's kind.
KIND_WORDS: dict[str, str] = {
    word: kind
    for kind, words in {
        "view": "pv view views viewed click clicks browse pageview productview itemview viewitem detail clk visit "
        "浏览 点击 查看 访问",
        "favourite": "fav favorite favourite favorites like wishlist addtowishlist collect bookmark save "
        "收藏 加收藏 喜欢",
        "cart": "cart addtocart cartadd addcart basket 加购 加购物车 加入购物车 购物车",
        "purchase": "buy purchase purchased order ordered transaction checkout paid pay payment sale sold bought "
        "购买 下单 支付 成交 付款 买",
        "return": "return returned refund refunded 退货 退款",
        "search": "search query searched 搜索 检索",
        "review": "review comment rate rating 评价 评论",
    }.items()
    for word in words.split()
}

_NUMBER_OF = re.compile(r"(?:number|num|no|count)of")
_DERIVED = re.compile(r"average|avg|mean|max|min|count|last|first|next|previous|estimated|coupon")
_SHORTEST_ENDING = 4  # letters; below it, "discount" would end in a word


def normal(name: str) -> str:
    """A name without case, width and punctuation: "Customer ID", "customer_id" and "CustomerID" are one."""
    return re.sub(r"[^\w]|_", "", unicodedata.normalize("NFKC", name).casefold())


def rank(column: str, name: str) -> int | None:
    """How well a file's column name fits a contract column: 0 is best, from 100 on only its end fits; None: not."""
    name = normal(name)
    words = NAMES[column]
    if name in words:
        return words.index(name)
    if column == "quantity" and _NUMBER_OF.match(name):
        return 50
    if _DERIVED.match(name):
        return None
    for at, word in enumerate(words):
        long = len(word) >= (_SHORTEST_ENDING if word.isascii() else 2)
        if long and name.endswith(word):
            return 100 + at
    return None


def category_level(name: str) -> int | None:
    """How deep in a category path a column of this name lies, or None where it names no category."""
    name = normal(name)
    return next((level for level, words in enumerate(CATEGORY_LEVELS) if name in words), None)


def kind_of(word: str) -> str | None:
    """The kind that a word means, or None."""
    return KIND_WORDS.get(normal(word))
