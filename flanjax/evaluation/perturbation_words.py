"""Words for `flanjax.evaluation.perturbations`: contractions, misspellings, synonyms, fillers, genders and names.

MISSPELLINGS["because"]        ["becuase"]
SYNONYMS["big"]                ["large"]
FEMALE["uncle"]                ["aunt"]

The lists are short and our own, but for names, which are the European-American and African-American first names of
Caliskan, Bryson and Narayanan 2017 (Science 356, "Semantics derived automatically from language corpora").
"""

# Word after which another is contracted, and what follows the one in the short form.
_CONTRACTED = {
    ("not", "n't"): "is are was were do does did has have had could would should might must need",
    ("are", "'re"): "you we they",
    ("have", "'ve"): "i you we they could would should might must",
    ("will", "'ll"): "i you he she it we they who",
    ("would", "'d"): "i you he she it we they that there",
    ("is", "'s"): "he she it that there what who where when how why",
}
CONTRACTIONS: dict[str, str] = {
    f"{word} {long}": word + short for (long, short), words in _CONTRACTED.items() for word in words.split()
}
CONTRACTIONS |= {"cannot": "can't", "will not": "won't", "shall not": "shan't", "i am": "i'm"}
EXPANSIONS: dict[str, str] = {short: long for long, short in CONTRACTIONS.items()}
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_MISSPELT = """
absence absense; accommodate accomodate; achieve acheive; across accross; already allready; amount ammount;
answer anwser; appear apear; argument arguement; available availible; because becuase; before befor;
beginning begining; believe beleive; between betwen; business buisness; calendar calender; chief cheif;
children childern; coming comming; committee commitee; completely completly; conscious concious;
country coutry; could coud; decision desicion; definitely definately; describe discribe; difference diffrence;
different diffrent; disappear dissapear; during durring; embarrass embarass; environment enviroment;
especially especialy; example exemple; exercise excercise; existence existance; experience experiance;
explain explane; familiar familar; father fahter; favorite favorate; february febuary; finally finaly;
first frist; foreign foriegn; forty fourty; friend freind; government goverment; grammar grammer; group gruop;
guarantee garantee; happened happend; height heigth; house huose; immediately immediatly; important importent;
independent independant; information infomation; interesting intresting; knowledge knowlege; language langauge;
large lagre; letter leter; library libary; listen lisen; maintenance maintainance; many mnay; minute minuet;
money moeny; mother mohter; necessary neccessary; neighbor nieghbor; number nubmer; occasion ocassion;
occurred occured; often offen; opinion opinon; original orignal; other ohter; people poeple; piece peice;
place palce; possible possable; president presedent; probably probaly; problem probelm; question quesiton;
really realy; receive recieve; recommend recomend; remember remeber; restaurant restaraunt; school shcool;
science sience; sentence sentance; separate seperate; several severel; should shoud; similar similiar;
since sicne; something somthing; sometimes sometims; statement statment; stopped stoped; succeed suceed;
successful succesful; surprise suprise; temperature temperture; their thier; there ther; these theese;
thing hting; think htink; though thuogh; through throught; together togather; tomorrow tommorow; truly truely;
until untill; usually usualy; water watre; weather wether; weird wierd; where wher; which wich; while whlie;
would woud; writing writting; written writen; yesterday yesterady"""
_SYNONYMS = """
big large; small little; quick rapid; begin start; begins starts; buy purchase; help assist; choose select pick;
mistake error; ill sick; smart clever; require need; requires needs; attempt try; entire whole; often frequently;
maybe perhaps; almost nearly; usually typically; glad happy; unhappy sad; wealthy rich; child kid; children kids;
photo picture; film movie; car automobile; plane airplane; shop store; doctor physician; woods forest; ocean sea;
job occupation; below underneath; biggest largest; smallest littlest; country nation; incorrect wrong; option choice;
several various; discover find; discovered found; show display; shows displays; located situated; strange odd;
scared afraid; tired weary; silent quiet; terrible awful; wonderful marvellous; simple easy"""
_FEMALE = """
he she; him her; his her; himself herself; man woman; men women; boy girl; boys girls; father mother;
fathers mothers; dad mom; dads moms; son daughter; sons daughters; brother sister; brothers sisters; uncle aunt;
uncles aunts; nephew niece; nephews nieces; husband wife; husbands wives; grandfather grandmother;
grandfathers grandmothers; grandson granddaughter; grandsons granddaughters; stepfather stepmother;
boyfriend girlfriend; king queen; kings queens; prince princess; waiter waitress; waiters waitresses;
actor actress; actors actresses; gentleman lady; gentlemen ladies; groom bride; male female; males females"""
_WHITE_MEN = """
Adam Alan Andrew Brad Frank Fred Greg Harry Ian Jack Jed Josh Justin Matthew Paul Peter Roger Ryan Stephen Todd"""
_BLACK_MEN = """
Alonzo Alphonse Darnell Deion Jamel Jerome Lamar Lamont Leroy Lionel Malik Rashaun Terrence Theo Torrance Tyree
Tyrone"""
_WHITE_WOMEN = """
Amanda Amber Betsy Courtney Crystal Donna Ellen Emily Heather Katie Kristin Lauren Megan Melanie Meredith Nancy
Rachel Sara Shannon Stephanie"""
_BLACK_WOMEN = """
Aiesha Ebony Jasmine Lakisha Lashelle Latisha Latonya Latoya Nichelle Shaniqua Shanise Sharise Shereen Tameisha
Tanisha Tashika Temeka Teretha Tia Yolanda"""
FILLERS = ("uhm", "well", "like", "you know", "I mean", "actually", "so to say", "I think", "perhaps", "probably")


def _neighbours() -> dict[str, str]:
    """Of each letter those on keys that touch its own; each row lies half a key to the right of the one above."""
    places = {key: (column + 0.5 * row, row) for row, keys in enumerate(_ROWS) for column, key in enumerate(keys)}
    return {
        key: "".join(
            other
            for other, (x, y) in places.items()
            if other != key and abs(y - row) <= 1 and abs(x - column) <= 1 - 0.5 * abs(y - row)
        )
        for key, (column, row) in places.items()
    }


def _lists(text: str) -> list[list[str]]:
    return [entry.split() for entry in text.replace("\n", " ").split(";")]


NEIGHBOURS = _neighbours()
MISSPELLINGS = {right: wrong for right, *wrong in _lists(_MISSPELT)}
SYNONYMS = {word: [other for other in group if other != word] for group in _lists(_SYNONYMS) for word in group}
FEMALE = {male: [female] for male, female in _lists(_FEMALE)}
NAMES = ((_WHITE_MEN.split(), _BLACK_MEN.split()), (_WHITE_WOMEN.split(), _BLACK_WOMEN.split()))
