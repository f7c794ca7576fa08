"""The grammar of the replies world: names, days, and per kind of message its requests and ways to answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Irene", "Jonas", "Karen", "Leo", "Maria",
    "Noah", "Olga", "Paul", "Rosa", "Simon", "Tara", "Victor", "Wanda", "Yusuf", "Zoe", "Amir", "Bella", "Clara",
    "Daniel", "Elena", "Frank", "Hugo", "Ines", "Jack", "Lena", "Martin", "Nina", "Oscar", "Petra", "Sara", "Tom",
    "Vera",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
GREETINGS = (
    "Dear {name}",
    "Hello {name}",
    "Hi {name}",
    "Good morning {name}",
    "Hey {name}",
    "My dear {name}",
    "{name}",
)
CLOSINGS = (
    "Warm wishes!", "See you soon.", "All the best.", "Take care!", "Have a good week.", "Best regards.",
    "Until then!", "Yours truly.",
)  # fmt: skip
LIMITS = (18, 22, 26, 30)
LIMIT_WORDINGS = ("Use at most {} words.", "No more than {} words.", "Write up to {} words.")


@dataclass(frozen=True)
class Kind:
    """One kind of message. No phrase of `ideas` occurs in a request, so that echoing the request does not pass."""

    things: tuple[str, ...]
    requests: tuple[str, ...]
    ideas: tuple[tuple[str, ...], ...]
    cores: tuple[str, ...]
    extras: tuple[str, ...]
    fillers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Free parts of a core, of which any will do."""
    avoids: bool = False
    """Whether the request names a second thing that must not appear."""


APOLOGY = Kind(
    things=(
        "loud music", "barking dog", "late party", "broken fence", "noisy drill", "spilled paint", "blocked driveway",
        "football in the yard", "smoke from the grill", "piano practice",
    ),
    requests=(
        "Apologise to your neighbour {name} for the {thing} on {day}.",
        "Write a note of apology to {name} about the {thing} on {day}.",
        "Make peace with {name} after the {thing} on {day}.",
    ),
    ideas=(("sorry", "apologies", "i apologise", "i apologize", "forgive", "my fault", "excuse"),),
    cores=(
        "I am sorry about the {thing} on {day}.",
        "I am so sorry for the {thing} on {day}.",
        "Please forgive me for the {thing} on {day}.",
        "Please accept my apologies for the {thing} on {day}.",
        "Sorry about {day} and the {thing}.",
        "I apologise for the {thing} that we had on {day}.",
        "The {thing} on {day} was my fault.",
        "My apologies: the {thing} on {day} was too much.",
        "{day} was too loud, so please excuse the {thing}.",
        "I feel bad about the {thing} on {day}, so forgive me.",
    ),
    extras=(
        "It will not happen again.", "I hope you could sleep.", "Next time I will ask you first.",
        "I will be more careful.", "Let me make it up to you with a cake.", "You were very patient.",
        "I did not think of you.", "I will come over with coffee.",
    ),
)  # fmt: skip

INVITATION = Kind(
    things=(
        "dinner", "a picnic", "a garden party", "a game night", "a walk by the lake", "a film evening", "a barbecue",
        "tea and cake", "a concert", "a boat trip",
    ),
    requests=(
        "Invite {name} to {thing} on {day}.",
        "Ask {name} over for {thing} on {day}.",
        "Write an invitation to {thing} on {day} for {name}.",
    ),
    ideas=(
        ("come", "join", "welcome", "would you like", "are you free", "you are invited", "see you at", "our guest"),
    ),
    cores=(
        "Would you like to come to {thing} on {day}?",
        "Please join us for {thing} on {day}.",
        "Are you free on {day}? We plan {thing}.",
        "You are invited to {thing} on {day}.",
        "We would love to see you at {thing} on {day}.",
        "Come to {thing} on {day}!",
        "On {day} we have {thing}, and you are welcome.",
        "Be our guest for {thing} on {day}.",
        "We are having {thing} on {day}, so do come.",
        "{day} is the day of {thing}: will you join me?",
    ),
    extras=(
        "Bring a friend if you like.", "There will be music.", "We start at six.", "Just bring yourself.",
        "Tell me if you can make it.", "Everyone hopes to see you.", "I will make something nice.", "It will be fun.",
    ),
)  # fmt: skip

THANKS = Kind(
    things=(
        "the flowers", "the help with the move", "the lovely book", "the ride home", "the apple cake",
        "the concert tickets", "the good advice", "the warm scarf", "the old photos", "the new lamp",
    ),
    requests=(
        "Thank {name} for {thing} on {day}.",
        "You got {thing} from {name} on {day}. Show that you liked it.",
        "Write a note to {name} who was so good to you on {day}: it is about {thing}.",
    ),
    ideas=(("thank you", "thanks", "grateful", "so kind", "appreciate", "made my day"),),
    cores=(
        "Thank you for {thing} on {day}.",
        "Many thanks for {thing} on {day}!",
        "I am so grateful for {thing} on {day}.",
        "It was so kind to think of {thing} on {day}.",
        "I really appreciate {thing} on {day}.",
        "Thanks a lot for {day} and {thing}.",
        "You made my day on {day} with {thing}.",
        "How can I thank you for {thing} on {day}?",
        "{day} was a good day: thanks for {thing}.",
        "A big thank you for {thing} on {day}!",
    ),
    extras=(
        "You are a true friend.", "It was just what I needed.", "I did not expect it.", "My family was happy too.",
        "I owe you one.", "It made me smile.", "Next time it is my turn.", "You always know what to do.",
    ),
)  # fmt: skip

DELAY = Kind(
    things=(
        "the meeting", "the lunch", "the piano lesson", "the tennis match", "the phone call", "the interview",
        "the house tour", "the language class", "the bike ride", "the book club",
    ),
    requests=(
        "Postpone {thing} with {name} to {day} and give a reason.",
        "You cannot make {thing} with {name}. Offer {day} and say why.",
        "Tell {name} that {thing} has to wait until {day}, with a reason.",
    ),
    ideas=(
        ("move", "could we", "instead", "shift", "put off", "later", "reschedule", "postpone it", "can we", "better"),
        ("because", "since", "due to", "sadly", "the reason is"),
    ),
    cores=(
        "Could we move {thing} to {day}, because {reason}?",
        "Can we have {thing} on {day} instead, since {reason}?",
        "Because {reason}, I must shift {thing} to {day}.",
        "Since {reason}, {day} would be better for {thing}.",
        "I have to put off {thing} until {day} because {reason}.",
        "Sadly {reason}. Could we do {thing} on {day}?",
        "{day} is better for {thing}, because {reason}.",
        "I need {thing} later, on {day}. Sadly {reason}.",
    ),
    extras=(
        "I hope that suits you.", "Tell me if that works.", "I will bring cake.", "It came as a surprise.",
        "I look forward to it.", "Same time, same place.", "Let me know.",
    ),
    fillers={
        "reason": (
            "I have a cold", "my train is late", "my car broke down", "the plumber is coming", "my son is ill",
            "I must work late", "my mother is visiting", "I lost my keys", "the roof is leaking", "I hurt my foot",
        )
    },
)  # fmt: skip

DINNER = Kind(
    things=(
        "tomatoes", "rice", "mushrooms", "beans", "potatoes", "chicken", "fish", "cheese", "spinach", "eggs",
        "lentils", "pumpkin",
    ),
    requests=(
        "Suggest a dinner with {thing} but without {avoid} to {name} for {day}.",
        "{name} eats no {avoid} and has {thing} at home. What should it be on {day}?",
        "Tell {name} what to cook on {day}: use {thing}, leave out {avoid}.",
    ),
    ideas=(("how about", "why not", "i suggest", "you could", "try", "what about", "i would make", "think of"),),
    cores=(
        "How about {dish} with {thing} on {day}?",
        "Why not make {dish} with {thing} on {day}?",
        "I suggest {dish} with {thing} for {day}.",
        "You could have {dish} with {thing} on {day}.",
        "Try {dish} on {day}, with plenty of {thing}.",
        "What about {thing} on {day}, as {dish}?",
        "On {day} I would make {dish} with {thing}.",
        "Think of {dish} for {day}, made with {thing}.",
    ),
    extras=(
        "Serve it with fresh bread.", "A green salad goes with it.", "It takes half an hour.", "Add a little garlic.",
        "It is cheap and warm.", "Your guests will like it.", "Keep some for the next day.", "Use good oil.",
    ),
    fillers={
        "dish": (
            "a soup", "a curry", "a pie", "a stew", "a big salad", "fresh pasta", "a gratin", "tacos", "a pan dish",
            "dumplings",
        )
    },
    avoids=True,
)  # fmt: skip

CAFE = Kind(
    things=(
        "by the river", "at the station", "near the old mill", "in the park", "on the hill", "at the harbour",
        "beside the library", "under the bridge", "behind the church", "at the market",
    ),
    requests=(
        "{name} opens a café {thing} on {day}. Suggest what it should be called.",
        "Find a name for the café {thing} that {name} opens on {day}.",
        "On {day} {name} opens a café {thing} and needs a name for it.",
    ),
    ideas=(("call it", "name it", "how about", "why not", "my idea is", "what about", "it could be", "i like"),),
    cores=(
        "Call it The {colour} {object} when you open {thing} on {day}.",
        "Name it {colour} {object}, and open {thing} on {day}.",
        "How about The {colour} {object} for your place {thing} on {day}?",
        "Why not The {colour} {object}, {thing}, from {day} on?",
        "My idea is {colour} {object}, {thing}, this {day}.",
        "What about {colour} {object}? It fits a place {thing} on {day}.",
        "From {day} on it could be The {colour} {object}, {thing}.",
        "I like The {colour} {object} for {day} and a place {thing}.",
    ),
    extras=(
        "It is easy to remember.", "It sounds warm.", "People will smile.", "It looks good on a sign.",
        "Nobody else has it.", "It makes me thirsty.", "I would go there.",
    ),
    fillers={
        "colour": (
            "Blue", "Golden", "Quiet", "Little", "Happy", "Green", "Old", "Sunny", "Silver", "Lazy", "Brave", "Sweet",
        ),
        "object": (
            "Kettle", "Spoon", "Cup", "Bean", "Sparrow", "Corner", "Lantern", "Window", "Anchor", "Teapot", "Fox",
            "Clock",
        ),
    },
)  # fmt: skip

PRAISE = Kind(
    things=(
        "the new job", "the driving licence", "the new house", "the baby", "the exam", "the first prize",
        "the wedding", "the marathon", "the first book", "the school play",
    ),
    requests=(
        "Congratulate {name} on {thing} and promise to call on {day}.",
        "Write a few kind words to {name} about {thing} and say that you call on {day}.",
        "Good news from {name}: {thing}. Be glad with them and announce a call on {day}.",
    ),
    ideas=(
        ("congratulations", "well done", "proud", "happy for you", "wonderful", "hats off", "bravo"),
        ("i will call", "i will ring", "my call", "talk on", "speak on", "hear from me"),
    ),
    cores=(
        "Congratulations on {thing}! I will call on {day}.",
        "Well done with {thing}! I will ring you on {day}.",
        "I am so proud of you and {thing}. Expect my call on {day}.",
        "I am happy for you because of {thing}. Let us talk on {day}.",
        "What wonderful news about {thing}! We speak on {day}.",
        "Hats off to you for {thing}! You will hear from me on {day}.",
        "Bravo for {thing}! On {day} I will call you.",
        "I will call on {day}, but first: congratulations on {thing}!",
        "You will hear from me on {day}. What a wonderful thing, {thing}!",
        "I am proud of {thing}, so let us talk on {day}.",
    ),
    extras=(
        "You worked hard for it.", "I knew it.", "Let us have cake soon.", "Nobody deserves it more.",
        "Tell me all about it then.", "What a year!", "Enjoy it.",
    ),
)  # fmt: skip

REMINDER = Kind(
    things=(
        "the library books", "the rent", "the vet visit", "the parcel", "the tax form", "the team meeting",
        "the train tickets", "the spare key", "the garden tools", "the bread order",
    ),
    requests=(
        "Remind {name} of {thing} on {day}.",
        "{name} tends to miss things. Nudge them about {thing} on {day}.",
        "See to it that {name} has {thing} in mind on {day}.",
    ),
    ideas=(("do not forget", "don't forget", "remember", "reminder", "keep in mind", "please think", "due", "note"),),
    cores=(
        "Please do not forget {thing} on {day}.",
        "Remember {thing} on {day}!",
        "A small reminder: {thing} on {day}.",
        "Just a reminder that {day} is the day for {thing}.",
        "Please keep in mind {thing} on {day}.",
        "Please think of {thing} this {day}.",
        "Will you remember {thing} on {day}?",
        "{day} is close, so don't forget {thing}.",
        "Make a note for {day}: {thing}.",
        "On {day} {thing} will be due.",
    ),
    extras=(
        "I can help you.", "It is important.", "Write it down.", "It was hard to arrange.", "Call me if you are busy.",
        "It will not take long.", "I will be there too.", "We rely on you.",
    ),
)  # fmt: skip

KINDS: dict[str, Kind] = {
    "apology": APOLOGY,
    "invitation": INVITATION,
    "thanks": THANKS,
    "delay": DELAY,
    "dinner": DINNER,
    "cafe": CAFE,
    "praise": PRAISE,
    "reminder": REMINDER,
}
