"""The datasets of Flan 2021 (arXiv 2109.01652) that are answered with a text: questions, summaries, translations, data.

Fields are those of TFDS and of Hugging Face; files of the authors are read as well where an entry names columns, or
rows inside of a record.
"""

from functools import partial

from flanjax.tasks import flan_instances as rows
from flanjax.tasks import flan_nested as nested
from flanjax.tasks.flan_datasets_base import FlanDataset, Splits, cut

_BY_SA_4 = "CC BY-SA 4.0"
_NOT_STATED = "not stated"
_PUBLISHERS = "the publishers': research"
_WMT = "those of its sources, see https://www.statmt.org"
_LANGUAGES = {"de": "German", "tr": "Turkish", "cs": "Czech", "fi": "Finnish", "ro": "Romanian", "ru": "Russian"}

_summary = partial(rows.text_to_text, fields=(("document", "document"),), answer="summary")

SUMMARIES = (
    FlanDataset(
        name="aeslc",
        cluster="summarization",
        type="headline",
        instance=partial(rows.text_to_text, fields=(("document", "email_body"),), answer="subject_line"),
        splits=Splits(validation="validation[-200:]"),
        tfds="aeslc",
        hub="Yale-LILY/aeslc",
        title="AESLC: subject lines of Enron's e-mails",
        paper="arXiv 1906.03497",
        licence=_NOT_STATED,
    ),
    FlanDataset(
        name="cnn_dailymail",
        cluster="summarization",
        type="summarization",
        instance=partial(rows.text_to_text, fields=(("document", "article"),), answer="highlights"),
        tfds="cnn_dailymail",
        hub="abisee/cnn_dailymail:3.0.0",
        title="CNN and Daily Mail: articles and their highlights",
        paper="arXiv 1704.04368",
        licence="Apache-2.0",
    ),
    FlanDataset(
        name="gigaword",
        cluster="summarization",
        type="headline",
        instance=rows.gigaword,
        tfds="gigaword",
        hub="Harvard/gigaword",
        title="Gigaword: headlines from first sentences",
        paper="arXiv 1509.00685",
        licence="LDC's terms",
    ),
    FlanDataset(
        name="multi_news",
        cluster="summarization",
        type="summarization",
        instance=_summary,
        tfds="multi_news",
        hub="alexfabbri/multi_news",
        title="Multi-News: several articles, one summary",
        paper="arXiv 1906.01749",
        licence="not for commerce",
    ),
    FlanDataset(
        name="newsroom",
        cluster="summarization",
        type="summarization",
        instance=partial(rows.text_to_text, fields=(("document", "text"),), answer="summary"),
        tfds="newsroom",
        title="Newsroom: summaries from 38 newsrooms",
        paper="arXiv 1804.11283",
        licence="research, to be asked for",
        page="https://lil.nlp.cornell.edu/newsroom",
    ),
    FlanDataset(
        name="samsum",
        cluster="summarization",
        type="summarization",
        instance=rows.samsum,
        tfds="samsum",
        hub="knkarthick/samsum",
        title="SAMSum: chats and their summaries",
        paper="arXiv 1911.12237",
        licence="CC BY-NC-ND 4.0",
    ),
    FlanDataset(
        name="xsum",
        cluster="summarization",
        type="summarization",
        instance=_summary,
        hub="EdinburghNLP/xsum",
        title="XSum: BBC articles in one sentence",
        paper="arXiv 1808.08745",
        licence=_PUBLISHERS,
    ),
    FlanDataset(
        name="opinion_abstracts_rotten_tomatoes",
        cluster="summarization",
        type="summarization",
        instance=rows.rotten_tomatoes,
        splits=Splits(train="train[:-600]", validation="train[-600:-500]", test="train[-500:]"),
        tfds="opinion_abstracts/rotten_tomatoes",
        title="Rotten Tomatoes: the consensus of critics",
        paper="arXiv 1606.02785",
        licence=_NOT_STATED,
        page="https://web.eecs.umich.edu/~wangluxy/data.html",
    ),
    FlanDataset(
        name="opinion_abstracts_idebate",
        cluster="summarization",
        type="summarization",
        instance=rows.idebate,
        splits=Splits(train="train[:-600]", validation="train[-600:-500]", test="train[-500:]"),
        tfds="opinion_abstracts/idebate",
        title="iDebate: the claim that an argument supports",
        paper="arXiv 1606.02785",
        licence=_NOT_STATED,
        page="https://web.eecs.umich.edu/~wangluxy/data.html",
    ),
    FlanDataset(
        name="wiki_lingua_english_en",
        cluster="summarization",
        type="summarization",
        instance=partial(rows.text_to_text, fields=(("document", "source"),), answer="target"),
        tfds="gem/wiki_lingua_english_en",
        hub="GEM/wiki_lingua:en",
        title="WikiLingua, English: how-to articles in short",
        paper="arXiv 2010.03093",
        licence="CC BY-NC-SA 3.0",
    ),
)

DATA = (
    FlanDataset(
        name="common_gen",
        cluster="structure_to_text",
        type="concepts_to_text",
        instance=rows.common_gen,
        splits=cut(200, test="validation"),
        tfds="gem/common_gen",
        hub="GEM/common_gen",
        title="CommonGen: a sentence with given words",
        paper="arXiv 1911.03705",
        licence="MIT",
    ),
    FlanDataset(
        name="dart",
        cluster="structure_to_text",
        type="data_to_text",
        instance=partial(rows.data_to_text, data="tripleset"),
        splits=cut(200, test="validation"),
        tfds="gem/dart",
        hub="GEM/dart",
        title="DART: triples from tables, in words",
        paper="arXiv 2007.02871",
        licence="MIT",
    ),
    FlanDataset(
        name="e2e_nlg",
        cluster="structure_to_text",
        type="data_to_text",
        instance=partial(rows.data_to_text, data="meaning_representation"),
        splits=cut(200, test="validation"),
        tfds="gem/e2e_nlg",
        hub="GEM/e2e_nlg",
        title="E2E: restaurants described",
        paper="arXiv 1706.09254",
        licence=_BY_SA_4,
    ),
    FlanDataset(
        name="web_nlg_en",
        cluster="structure_to_text",
        type="data_to_text",
        instance=partial(rows.data_to_text, data="input"),
        splits=cut(200, test="validation"),
        tfds="gem/web_nlg_en",
        hub="GEM/web_nlg:en",
        title="WebNLG, English: triples of DBpedia, in words",
        paper="ACL P17-1017",
        licence="CC BY-NC-SA 4.0",
    ),
)

QUESTIONS = (
    *(
        FlanDataset(
            name=f"squad_v{version}",
            cluster="reading_comprehension",
            type="reading_qa",
            instance=rows.squad,
            splits=cut(200, test="validation"),
            tfds=tfds,
            hub=hub,
            title=f"SQuAD {version}: questions about Wikipedia",
            paper=paper,
            licence=_BY_SA_4,
        )
        for version, tfds, hub, paper in (
            (1, "squad/v1.1", "rajpurkar/squad:plain_text", "arXiv 1606.05250"),
            (2, "squad/v2.0", "rajpurkar/squad_v2:squad_v2", "arXiv 1806.03822"),
        )
    ),
    FlanDataset(
        name="drop",
        cluster="reading_comprehension",
        type="reading_qa",
        instance=rows.drop,
        splits=cut(200, test="dev"),
        tfds="drop",
        hub="ucinlp/drop",
        hub_splits=(("dev", "validation"),),
        title="DROP: counting and comparing in a paragraph",
        paper="arXiv 1903.00161",
        licence=_BY_SA_4,
    ),
    FlanDataset(
        name="quac",
        cluster="conversational_qa",
        type="conversational_qa",
        instance=rows.quac,
        splits=cut(200, test="validation"),
        tfds="quac",
        hub="allenai/quac:plain_text",
        rows=nested.quac,
        title="QuAC: a student asks, a teacher answers from a section",
        paper="arXiv 1808.07036",
        licence=_BY_SA_4,
    ),
    FlanDataset(
        name="coqa",
        cluster="conversational_qa",
        type="conversational_qa",
        instance=rows.coqa,
        splits=cut(100),
        tfds="coqa",
        hub="stanfordnlp/coqa",
        hub_splits=(("test", "validation"),),
        title="CoQA: conversations about stories",
        paper="arXiv 1808.07042",
        licence="those of its sources, see its page",
    ),
    FlanDataset(
        name="natural_questions",
        cluster="open_domain_qa",
        type="closed_qa",
        instance=rows.natural_questions,
        splits=cut(200, test="validation"),
        tfds="natural_questions_open",
        hub="google-research-datasets/nq_open:nq_open",
        title="Natural Questions, open: what people typed into a search engine",
        paper="arXiv 1906.00300",
        licence="CC BY-SA 3.0",
    ),
    FlanDataset(
        name="trivia_qa",
        cluster="open_domain_qa",
        type="closed_qa",
        instance=rows.trivia_qa,
        splits=cut(200, test="validation"),
        tfds="trivia_qa/rc.nocontext",
        hub="mandarjoshi/trivia_qa:rc.nocontext",
        title="TriviaQA: questions of quizzes",
        paper="arXiv 1705.03551",
        licence=_NOT_STATED,
    ),
    FlanDataset(
        name="math_dataset",
        cluster="math",
        type="math",
        instance=rows.mathematics,
        splits=cut(200),
        tfds="math_dataset/algebra__linear_1d",
        hub="deepmind/math_dataset:algebra__linear_1d",
        title="Mathematics: linear equations with one unknown",
        paper="arXiv 1904.01557",
        licence="Apache-2.0",
    ),
    FlanDataset(
        name="lambada",
        type="last_word",
        instance=rows.lambada,
        splits=Splits(validation="", test=""),
        tfds="lambada",
        hub="cimec/lambada:plain_text",
        hub_splits=(("train", "validation"),),  # what is called train there are whole novels
        title="LAMBADA: the last word, from all that comes before it",
        paper="arXiv 1606.06031",
        licence="CC BY 4.0",
    ),
)

TRANSLATIONS = (
    FlanDataset(
        name="para_crawl_enes",
        cluster="translation",
        type="translation",
        instance=partial(rows.translation, source="en", target="es", languages=("English", "Spanish")),
        splits=Splits(train="train[:30000]", validation="train[-1200:-1000]", test="train[-1000:]"),
        tfds="para_crawl/enes",
        hub="Helsinki-NLP/opus_paracrawl:en-es",
        title="ParaCrawl: English and Spanish",
        paper="ACL 2020.acl-main.417",
        licence="CC0",
    ),
    FlanDataset(
        name="wmt14_enfr",
        cluster="translation",
        type="translation",
        instance=partial(rows.translation, source="en", target="fr", languages=("English", "French")),
        tfds="wmt14_translate/fr-en",
        hub="wmt/wmt14:fr-en",
        title="WMT 2014: English to French",
        paper="ACL W14-3302",
        licence=_WMT,
    ),
    *(
        FlanDataset(
            name=f"wmt16_translate_{code}en",
            cluster="translation",
            type="translation",
            instance=partial(rows.translation, source="en", target=code, languages=("English", language)),
            tfds=f"wmt16_translate/{code}-en",
            hub=f"wmt/wmt16:{code}-en",
            title=f"WMT 2016: English to {language}",
            paper="ACL W16-2301",
            licence=_WMT,
        )
        for code, language in _LANGUAGES.items()
    ),
)

FORMATTING = tuple(
    FlanDataset(
        name=name,
        cluster="text_formatting",
        type=type,
        instance=instance,
        splits=Splits(
            train=f"train[{first}:{first + 30000}]",
            validation=f"train[{first + 30000}:{first + 30200}]",
            test="train[-3000:]",
        ),
        tfds="para_crawl/enda",
        hub="Helsinki-NLP/opus_paracrawl:da-en",
        folder="para_crawl_enda",
        title="ParaCrawl, the English side of English and Danish",
        paper="ACL 2020.acl-main.417",
        licence="CC0",
    )
    for name, type, instance, first in (
        ("true_case", "true_case", rows.true_case, 0),
        ("fix_punct", "fix_punctuation", rows.fix_punctuation, 30200),
        ("word_segment", "word_segment", rows.word_segment, 60400),
    )
)

DATASETS = (*SUMMARIES, *DATA, *QUESTIONS, *TRANSLATIONS, *FORMATTING)
