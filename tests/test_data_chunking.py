import pytest

from research.data.chunking import Chunking, check_reach, parse, parse_several

LONG = Chunking("late", 256, window=8192, overlap=512)


@pytest.mark.parametrize(
    "text,want",
    [
        ("late:256", Chunking("late", 256)),
        ("late:sentences=5", Chunking("late", 5, "sentences")),
        ("late:256,window=8192,overlap=512", LONG),
        ("late:256,window=8192", Chunking("late", 256, window=8192, overlap=256)),
        ("landmark:sentences=1", Chunking("landmark", 1, "sentences")),
        ("naive:256", Chunking("naive", 256)),
        ("pcw:512", Chunking("pcw", 512)),
    ],
)
def test_options_and_their_names(text, want):
    assert parse(text) == want
    assert parse(str(want)) == want


@pytest.mark.parametrize(
    "text,message",
    [
        ("lata:256", "unknown chunking 'lata'; known: late, landmark, naive, pcw"),
        ("", "unknown chunking ''"),
        ("late", "'late' needs one size, as late:512"),
        ("late:window=5", "needs one size"),
        ("late:3,sentences=5", "needs one size"),
        ("late:0", "late:0: size 0 is below 1"),
        ("late:-3", "size -3 is below 1"),
        ("late:many", "'many' is not a whole number"),
        ("late:64,size=3", "has 'size=3'; allowed: a number of tokens, sentences="),
        ("late:64,window=512,overlap=512", "overlap 512; allowed: 0 ... 511"),
        ("late:64,window=0", "window 0 is below 1"),
        ("late:64,overlap=3", "overlap needs a window"),
        ("naive:64,window=512", "window fits late and landmark only"),
        ("pcw:sentences=5", "pcw takes a number of tokens"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_several():
    found = parse_several("none;naive:64;late:64,window=512,overlap=8;128")
    late = parse("late:64,window=512,overlap=8")
    again = parse("late:128,window=512,overlap=8")
    assert found == [None, parse("naive:64"), late, again]
    with pytest.raises(ValueError, match="unknown chunking '64'"):
        parse_several("64;late:128")


def test_windows_that_an_encoder_does_not_reach():
    check_reach(LONG, 8192)
    with pytest.raises(ValueError, match="reads 8192 tokens .* reaches 1 ... 512"):
        check_reach(LONG, 512)
    with pytest.raises(ValueError, match="pcw:513 reads 513"):
        check_reach(parse("pcw:513"), 512)
