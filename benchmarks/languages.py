"""How well caption clusters follow the topics of captions, per language.

The captions come from a small grammar: each of 16 topics has two subjects, two actions and two
places; adjectives and patterns are shared by all topics. With 40 clusters, the purity is the share
of captions that belong to the most frequent topic of their cluster.

    python -m benchmarks.languages [--encoder minilm]
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tyro

from curation.clusters.config import KMeansConfig
from curation.clusters.kmeans import assign, kmeans
from curation.clusters.scan import points_in_memory
from curation.encoders.captions import CaptionEncoder
from curation.encoders.config import CaptionConfig


class Grammar(NamedTuple):
    """The words of a language."""

    patterns: tuple[str, ...]
    adjectives: tuple[str, ...]
    topics: str
    """A topic per line: subjects / actions / places, separated by commas."""


GRAMMARS = {
    "English": Grammar(
        (
            "a {adjective} {subject} {action} {place}",
            "{place}, the {adjective} {subject} {action}",
            "a photo of a {subject} that {action} {place}",
        ),
        ("big", "small", "red", "blue", "old", "young"),
        """\
dog,puppy/runs,barks/on the beach,along the waves
cat,kitten/sleeps,purrs/on the sofa,near the fireplace
truck,car/turns,brakes/on the highway,at the crossroads
train,locomotive/arrives,departs/at the platform,on the rails
ship,boat/sails,anchors/in the harbor,beside the pier
airplane,jet/lands,takes off/on the runway,above the clouds
baker,cook/kneads dough,frosts a cake/in the kitchen,beside the oven
farmer,gardener/picks apples,plants tomatoes/in the orchard,inside the greenhouse
hiker,climber/climbs,camps/on the mountain,below the glacier
skier,snowboarder/jumps,slides/on the snowy slope,from the ski lift
teacher,student/writes,reads aloud/in the classroom,at the blackboard
nurse,doctor/bandages a wound,measures a fever/in the hospital,beside the stretcher
guitarist,singer/performs a song,tunes strings/on the stage,before the audience
goalkeeper,striker/kicks the ball,celebrates a goal/in the stadium,on the football pitch
programmer,engineer/types code,repairs a laptop/in the office,before two monitors
elephant,giraffe/drinks,grazes/in the savanna,under the acacia""",
    ),
    "Chinese": Grammar(
        (
            "一{adjective}{subject}{place}{action}",
            "{place},{adjective}{subject}正在{action}",
            "{subject}{place}{action}的照片",
        ),
        ("只大的", "只小的", "个红色的", "个蓝色的", "个年老的", "个年轻的"),
        """\
小狗,猎犬/奔跑,吠叫/在沙滩上,沿着海浪
小猫,花猫/睡觉,打呼噜/在沙发上,在壁炉旁
卡车,轿车/转弯,刹车/在高速公路上,在十字路口
火车,机车/进站,出发/在站台上,在铁轨上
轮船,帆船/航行,抛锚/在港口里,在码头旁
飞机,喷气机/降落,起飞/在跑道上,在云层上方
面包师,厨师/揉面团,装饰蛋糕/在厨房里,在烤箱旁
农民,园丁/摘苹果,种番茄/在果园里,在温室里
登山者,徒步者/攀登,露营/在山顶上,在冰川下
滑雪者,雪橇手/跳跃,滑行/在雪坡上,从缆车上
老师,学生/写字,朗读课文/在教室里,在黑板前
护士,医生/包扎伤口,量体温/在医院里,在担架旁
吉他手,歌手/演奏歌曲,调琴弦/在舞台上,在观众面前
守门员,前锋/踢足球,庆祝进球/在体育场里,在绿茵场上
程序员,工程师/编写代码,修理电脑/在办公室里,在显示器前
大象,长颈鹿/喝水,吃草/在草原上,在金合欢树下""",
    ),
    "Japanese": Grammar(
        (
            "{adjective}{subject}が{place}{action}",
            "{place}{adjective}{subject}が{action}",
            "{place}{action}{subject}の写真",
        ),
        ("大きな", "小さな", "赤い", "青い", "古い", "若い"),
        """\
子犬,猟犬/走る,吠える/砂浜で,波打ち際で
子猫,三毛猫/眠る,喉を鳴らす/ソファーの上で,暖炉のそばで
トラック,乗用車/曲がる,ブレーキをかける/高速道路で,交差点で
列車,機関車/到着する,発車する/駅のホームで,線路の上で
客船,ヨット/航海する,錨を下ろす/港で,桟橋の横で
飛行機,ジェット機/着陸する,離陸する/滑走路で,雲の上で
パン職人,料理人/生地をこねる,ケーキを飾る/台所で,オーブンの前で
農家,庭師/りんごを摘む,トマトを植える/果樹園で,温室の中で
登山者,ハイカー/登る,テントを張る/山頂で,氷河の下で
スキーヤー,スノーボーダー/跳ぶ,滑り降りる/雪のゲレンデで,リフトから
先生,生徒/字を書く,教科書を読む/教室で,黒板の前で
看護師,医師/傷に包帯を巻く,体温を測る/病院で,担架の横で
ギタリスト,歌手/曲を演奏する,弦を調律する/舞台で,観客の前で
ゴールキーパー,フォワード/ボールを蹴る,得点を祝う/競技場で,芝生のピッチで
プログラマー,技術者/コードを書く,パソコンを修理する/事務所で,モニターの前で
象,キリン/水を飲む,草を食べる/サバンナで,アカシアの木陰で""",
    ),
    "Thai": Grammar(
        (
            "{subject}{adjective}{action}{place}",
            "{place} {subject}{adjective}กำลัง{action}",
            "ภาพถ่ายของ{subject}ที่{action}{place}",
        ),
        ("ตัวใหญ่", "ตัวเล็ก", "สีแดง", "สีน้ำเงิน", "แก่", "หนุ่ม"),
        """\
สุนัข,ลูกหมา/วิ่ง,เห่า/บนชายหาด,ริมคลื่นทะเล
แมว,ลูกแมว/นอนหลับ,ร้องเหมียว/บนโซฟา,ข้างเตาผิง
รถบรรทุก,รถเก๋ง/เลี้ยว,เบรก/บนทางหลวง,ที่สี่แยก
รถไฟ,หัวรถจักร/มาถึง,ออกเดินทาง/ที่ชานชาลา,บนรางเหล็ก
เรือใหญ่,เรือใบ/แล่น,ทอดสมอ/ในท่าเรือ,ข้างสะพานปลา
เครื่องบิน,เครื่องเจ็ต/ลงจอด,ทะยานขึ้น/บนรันเวย์,เหนือเมฆ
คนทำขนมปัง,พ่อครัว/นวดแป้ง,แต่งหน้าเค้ก/ในครัว,หน้าเตาอบ
ชาวนา,คนสวน/เก็บแอปเปิล,ปลูกมะเขือเทศ/ในสวนผลไม้,ในเรือนกระจก
นักปีนเขา,นักเดินป่า/ปีน,กางเต็นท์/บนยอดเขา,ใต้ธารน้ำแข็ง
นักสกี,นักสโนว์บอร์ด/กระโดด,ไถลลง/บนเนินหิมะ,จากกระเช้าสกี
ครู,นักเรียน/เขียนหนังสือ,อ่านออกเสียง/ในห้องเรียน,หน้ากระดานดำ
พยาบาล,หมอ/พันแผล,วัดไข้/ในโรงพยาบาล,ข้างเปลหาม
มือกีตาร์,นักร้อง/บรรเลงเพลง,ตั้งสาย/บนเวที,ต่อหน้าผู้ชม
ผู้รักษาประตู,กองหน้า/เตะลูกบอล,ฉลองประตู/ในสนามกีฬา,บนสนามฟุตบอล
โปรแกรมเมอร์,วิศวกร/พิมพ์โค้ด,ซ่อมคอมพิวเตอร์/ในสำนักงาน,หน้าจอมอนิเตอร์
ช้าง,ยีราฟ/ดื่มน้ำ,กินหญ้า/ในทุ่งสะวันนา,ใต้ต้นอะคาเซีย""",
    ),
}


@dataclass(frozen=True)
class LanguagesConfig:
    """What is clustered."""

    encoder: str = "hashed"
    """hashed or minilm."""
    clusters: int = 40
    """Number of clusters."""
    seeds: int = 10
    """Runs of k-means per language; the mean counts."""


def main(config: LanguagesConfig) -> None:
    """Print one line per language."""
    encoder = CaptionEncoder(CaptionConfig(encoder=config.encoder))
    for language, grammar in GRAMMARS.items():
        captions, topics = sentences(grammar)
        points = points_in_memory(encoder.encode(captions), unit=True)
        purities = []
        for seed in range(config.seeds):
            centroids = kmeans(points, config.clusters, KMeansConfig(), seed)
            purities.append(purity(assign(points, centroids)[0], topics))

        print(
            f"{language:10s} {len(captions):,} captions, {encoder.name}, {config.clusters} "
            f"clusters: purity {np.mean(purities):.3f} ({min(purities):.3f} to {max(purities):.3f})"
        )


def sentences(grammar: Grammar) -> tuple[list[str], np.ndarray]:
    """Every combination of the words of a topic, with patterns and adjectives. Captions, topics."""
    topics: dict[str, int] = {}  # a pattern without an adjective makes each of its captions once
    for topic, line in enumerate(grammar.topics.splitlines()):
        kinds = (words.split(",") for words in line.split("/"))
        for subject, action, place, adjective, pattern in itertools.product(
            *kinds, grammar.adjectives, grammar.patterns
        ):
            caption = pattern.format(
                subject=subject, action=action, place=place, adjective=adjective
            )
            topics[caption] = topic

    return list(topics), np.array(list(topics.values()))


def purity(labels: np.ndarray, topics: np.ndarray) -> float:
    """The share of captions of which the topic is the most frequent one of their cluster."""
    counts = np.zeros((labels.max() + 1, topics.max() + 1), np.int64)
    np.add.at(counts, (labels, topics), 1)
    return float(counts.max(1).sum() / len(labels))


if __name__ == "__main__":
    main(tyro.cli(LanguagesConfig))
