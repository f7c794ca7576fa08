"""What the physics world knows: quantities with their units, laws of two factors, instruments, vectors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A physical quantity: symbol, unit as written after a number, and the unit's name."""

    name: str
    symbol: str
    unit: str
    unit_name: str


QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity("distance", "d", "m", "metre"),
        Quantity("time", "t", "s", "second"),
        Quantity("speed", "v", "m/s", "metre per second"),
        Quantity("mass", "m", "kg", "kilogram"),
        Quantity("acceleration", "a", "m/s^2", "metre per second squared"),
        Quantity("force", "F", "N", "newton"),
        Quantity("momentum", "p", "kg m/s", "kilogram metre per second"),
        Quantity("work", "W", "J", "joule"),
        Quantity("power", "P", "W", "watt"),
        Quantity("energy", "E", "J", "joule"),
        Quantity("voltage", "U", "V", "volt"),
        Quantity("current", "I", "A", "ampere"),
        Quantity("resistance", "R", "ohm", "ohm"),
        Quantity("volume", "V", "m^3", "cubic metre"),
        Quantity("density", "D", "kg/m^3", "kilogram per cubic metre"),
        Quantity("frequency", "f", "Hz", "hertz"),
        Quantity("pressure", "q", "Pa", "pascal"),
        Quantity("charge", "Q", "C", "coulomb"),
        Quantity("temperature", "T", "K", "kelvin"),
    )
}


@dataclass(frozen=True)
class Law:
    """`result = left operator right`, with situations that give the two numbers `a` and `b`."""

    result: str
    left: str
    operator: str
    """`*` or `/`."""
    right: str
    situations: tuple[str, ...]

    @property
    def formula(self) -> str:
        """In symbols: `v = d / t`."""
        result, left, right = (QUANTITIES[name].symbol for name in (self.result, self.left, self.right))
        return f"{result} = {left} {self.operator} {right}"

    @property
    def unit(self) -> str:
        """The unit of the result."""
        return QUANTITIES[self.result].unit


BODIES = ("car", "train", "ball", "cart", "boat", "cyclist", "drone", "sled", "runner", "truck", "bird", "crate")

LAWS: tuple[Law, ...] = (
    Law("speed", "distance", "/", "time", ("A {body} covers {a} m in {b} s.", "In {b} s a {body} goes {a} m.")),
    Law(
        "distance", "speed", "*", "time", ("A {body} moves at {a} m/s for {b} s.", "For {b} s a {body} keeps {a} m/s.")
    ),
    Law("acceleration", "force", "/", "mass", ("A force of {a} N pulls a {body} of {b} kg.",)),
    Law("force", "mass", "*", "acceleration", ("A {body} of {a} kg speeds up at {b} m/s^2.",)),
    Law("momentum", "mass", "*", "speed", ("A {body} of {a} kg moves at {b} m/s.",)),
    Law("work", "force", "*", "distance", ("A force of {a} N moves a {body} by {b} m.",)),
    Law(
        "power", "work", "/", "time", ("A motor does {a} J of work in {b} s.", "A crane needs {b} s for {a} J of work.")
    ),
    Law("energy", "power", "*", "time", ("A lamp of {a} W is on for {b} s.", "A heater of {a} W runs for {b} s.")),
    Law("voltage", "current", "*", "resistance", ("A current of {a} A flows through {b} ohm.",)),
    Law("current", "voltage", "/", "resistance", ("A voltage of {a} V lies across {b} ohm.",)),
    Law("resistance", "voltage", "/", "current", ("At {a} V a current of {b} A flows.",)),
    Law("density", "mass", "/", "volume", ("A block of {a} kg fills {b} m^3.", "A tank holds {a} kg in {b} m^3.")),
    Law("mass", "density", "*", "volume", ("A liquid of {a} kg/m^3 fills {b} m^3.",)),
)

INSTRUMENTS: dict[str, str] = {
    "current": "ammeter",
    "voltage": "voltmeter",
    "resistance": "ohmmeter",
    "speed": "speedometer",
    "mass": "balance",
    "time": "stopwatch",
    "force": "spring scale",
    "temperature": "thermometer",
    "distance": "ruler",
    "pressure": "barometer",
}

VECTORS = ("force", "velocity", "momentum", "acceleration", "displacement", "weight")
SCALARS = ("mass", "time", "energy", "temperature", "speed", "power", "density", "volume", "work", "pressure")


@dataclass(frozen=True)
class Change:
    """One factor of a law changes, the other does not."""

    cause: str
    """What the factor does, as the question says it."""
    twice: str
    """The factor afterwards, as an explanation says it."""
    result: str
    """What a result does that grows with the factor, as an option says it."""
    becomes: str
    """The same in an explanation: "becomes ..." ."""
    shown_by: tuple[str, ...]
    """Phrases by which an explanation shows that it knows."""
    rises: bool


DOUBLES = Change("doubles", "twice the {}", "it doubles", "twice as large", ("twice", "double"), True)
TRIPLES = Change("becomes 3 times as large", "a threefold {}", "it triples", "threefold", ("threefold", "triple"), True)
QUADRUPLES = Change("becomes 4 times as large", "a fourfold {}", "it rises fourfold", "fourfold", ("fourfold",), True)
TENFOLD = Change("becomes 10 times as large", "a tenfold {}", "it rises tenfold", "tenfold", ("tenfold",), True)
HALVES = Change("is cut to 50 %", "half the {}", "it halves", "half as large", ("half", "halves"), False)
THIRD = Change(
    "shrinks by a factor of 3", "a third of the {}", "it falls to a third", "a third as large", ("third",), False
)
QUARTER = Change(
    "shrinks by a factor of 4",
    "a quarter of the {}",
    "it falls to a quarter",
    "a quarter as large",
    ("quarter",),
    False,
)
TENTH = Change(
    "shrinks by a factor of 10", "a tenth of the {}", "it falls to a tenth", "a tenth as large", ("tenth",), False
)
INVERSE = {DOUBLES: HALVES, TRIPLES: THIRD, QUADRUPLES: QUARTER, TENFOLD: TENTH}
INVERSE |= {after: before for before, after in INVERSE.items()}
CHANGES = tuple(INVERSE)
UNCHANGED = "it stays the same"
