import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.rest.api.EncodingEnum;
import ca.uhn.fhir.rest.api.MethodOutcome;
import ca.uhn.fhir.rest.api.PreferReturnEnum;
import ca.uhn.fhir.rest.api.SearchStyleEnum;
import ca.uhn.fhir.rest.client.api.IGenericClient;
import ca.uhn.fhir.rest.client.interceptor.BearerTokenAuthInterceptor;
import ca.uhn.fhir.rest.gclient.ICriterion;
import ca.uhn.fhir.rest.server.exceptions.AuthenticationException;
import ca.uhn.fhir.rest.server.exceptions.BaseServerResponseException;
import ca.uhn.fhir.rest.server.exceptions.InvalidRequestException;
import ca.uhn.fhir.rest.server.exceptions.PreconditionFailedException;
import ca.uhn.fhir.rest.server.exceptions.ResourceGoneException;
import ca.uhn.fhir.rest.server.exceptions.ResourceNotFoundException;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import org.hl7.fhir.r4.model.Bundle;
import org.hl7.fhir.r4.model.CapabilityStatement;
import org.hl7.fhir.r4.model.CodeType;
import org.hl7.fhir.r4.model.Coding;
import org.hl7.fhir.r4.model.Encounter;
import org.hl7.fhir.r4.model.Enumerations.AdministrativeGender;
import org.hl7.fhir.r4.model.IdType;
import org.hl7.fhir.r4.model.OperationOutcome;
import org.hl7.fhir.r4.model.Parameters;
import org.hl7.fhir.r4.model.Patient;
import org.hl7.fhir.r4.model.Reference;
import org.hl7.fhir.r4.model.Resource;
import org.hl7.fhir.r4.model.StringType;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** HAPI's generic client against a running server, whose address is in CARERELAY_BASE. */
class FlowsTest {
  private static final String SYSTEM = "http://carerelay.example/sid/test";
  private static final FhirContext FHIR = FhirContext.forR4();

  private final String batch = UUID.randomUUID().toString();
  private IGenericClient client;

  @BeforeEach
  void connect() {
    client = FHIR.newRestfulGenericClient(System.getenv("CARERELAY_BASE"));
  }

  private Patient patient(String family) {
    Patient patient = new Patient();
    patient.addIdentifier().setSystem(SYSTEM).setValue(batch);
    patient.addName().setFamily(family).addGiven("Test");
    return patient;
  }

  private ICriterion<?> ofThisTest() {
    return Patient.IDENTIFIER.exactly().systemAndIdentifier(SYSTEM, batch);
  }

  private IdType created(String family) {
    return (IdType) client.create().resource(patient(family)).execute().getId();
  }

  /** Planned: nobody is told of it, and the server writes nothing about it. */
  private Encounter stayOf(String reference) {
    Encounter stay = new Encounter();
    stay.setStatus(Encounter.EncounterStatus.PLANNED);
    stay.setClass_(
        new Coding().setSystem("http://terminology.hl7.org/CodeSystem/v3-ActCode").setCode("IMP"));
    stay.setSubject(new Reference(reference));
    return stay;
  }

  private static String diagnosticsOf(BaseServerResponseException refused) {
    OperationOutcome outcome = (OperationOutcome) refused.getOperationOutcome();
    assertNotNull(outcome, "the OperationOutcome reaches whoever calls");
    return outcome.getIssueFirstRep().getDiagnostics();
  }

  @Test
  void readsTheCapabilities() {
    CapabilityStatement said =
        client.capabilities().ofType(CapabilityStatement.class).execute();
    assertEquals("4.0.1", said.getFhirVersion().toCode());
  }

  @ParameterizedTest
  @EnumSource(
      value = EncodingEnum.class,
      names = {"JSON", "XML"})
  void createsReadsAndUpdates(EncodingEnum encoding) {
    client.setEncoding(encoding);
    MethodOutcome made = client.create().resource(patient("Oakenshade")).execute();
    assertTrue(made.getCreated());
    assertEquals("1", made.getId().getVersionIdPart());
    IdType id = (IdType) made.getId().toUnqualifiedVersionless();

    Patient read = client.read().resource(Patient.class).withId(id).execute();
    assertEquals("Oakenshade", read.getNameFirstRep().getFamily());
    read.getNameFirstRep().setFamily("Thistlewick");
    MethodOutcome updated = client.update().resource(read).execute();
    assertEquals(id.getIdPart(), updated.getId().getIdPart());
    assertEquals("2", updated.getId().getVersionIdPart());

    Patient before =
        client.read().resource(Patient.class).withIdAndVersion(id.getIdPart(), "1").execute();
    assertEquals("Oakenshade", before.getNameFirstRep().getFamily());
    Patient unchanged =
        client.read().resource(Patient.class).withId(id).ifVersionMatches("2").returnNull().execute();
    assertEquals(null, unchanged);
  }

  /** The client learns the id from Location and Content-Location alone. */
  @Test
  void learnsIdsWhereNothingComesBack() {
    MethodOutcome made =
        client.create().resource(patient("Oakenshade")).prefer(PreferReturnEnum.MINIMAL).execute();
    assertEquals("1", made.getId().getVersionIdPart());
    Patient changed = patient("Thistlewick");
    changed.setId(made.getId().toUnqualifiedVersionless());
    MethodOutcome updated =
        client.update().resource(changed).prefer(PreferReturnEnum.MINIMAL).execute();
    assertNotNull(updated.getId(), "an update tells the version that it made");
    assertEquals(made.getId().getIdPart(), updated.getId().getIdPart());
    assertEquals("2", updated.getId().getVersionIdPart());
  }

  @Test
  void updatesAVersionThatItKnows() {
    IdType id = created("Oakenshade");
    Patient first = client.read().resource(Patient.class).withId(id.getIdPart()).execute();
    Patient second = first.copy();
    first.setGender(AdministrativeGender.FEMALE);
    client.update().resource(first).withAdditionalHeader("If-Match", "W/\"1\"").execute();
    second.setGender(AdministrativeGender.MALE);
    PreconditionFailedException refused =
        assertThrows(
            PreconditionFailedException.class,
            () ->
                client
                    .update()
                    .resource(second)
                    .withAdditionalHeader("If-Match", "W/\"1\"")
                    .execute());
    assertFalse(diagnosticsOf(refused).isEmpty());
  }

  /** It writes If-None-Exist as `Patient?identifier=...`. */
  @Test
  void createsUnderACondition() {
    MethodOutcome first =
        client.create().resource(patient("Oakenshade")).conditional().where(ofThisTest()).execute();
    assertTrue(first.getCreated());
    MethodOutcome again =
        client.create().resource(patient("Oakenshade")).conditional().where(ofThisTest()).execute();
    assertEquals(first.getId().getIdPart(), again.getId().getIdPart());
    String whole = "Patient?identifier=" + SYSTEM + "|" + batch;
    MethodOutcome byUrl =
        client.create().resource(patient("Oakenshade")).conditionalByUrl(whole).execute();
    assertEquals(first.getId().getIdPart(), byUrl.getId().getIdPart());
    Bundle found =
        client.search().forResource(Patient.class).where(ofThisTest()).returnBundle(Bundle.class).execute();
    assertEquals(1, found.getTotal());
  }

  @Test
  void updatesPatchesAndDeletesUnderAConditionToo() {
    IdType id = created("Oakenshade");
    MethodOutcome updated =
        client.update().resource(patient("Thistlewick")).conditional().where(ofThisTest()).execute();
    assertEquals(id.getIdPart(), updated.getId().getIdPart());
    MethodOutcome patched =
        client
            .patch()
            .withBody("[{\"op\":\"add\",\"path\":\"/active\",\"value\":true}]")
            .conditional(Patient.class)
            .where(ofThisTest())
            .execute();
    assertEquals("3", patched.getId().getVersionIdPart());
    client.delete().resourceConditionalByType(Patient.class).where(ofThisTest()).execute();
    assertThrows(
        ResourceGoneException.class,
        () -> client.read().resource(Patient.class).withId(id.getIdPart()).execute());
  }

  @Test
  void patches() {
    IdType id = (IdType) created("Oakenshade").toUnqualifiedVersionless();
    MethodOutcome json =
        client
            .patch()
            .withBody("[{\"op\":\"add\",\"path\":\"/birthDate\",\"value\":\"1948-05-14\"}]")
            .withId(id)
            .execute();
    assertEquals("2", json.getId().getVersionIdPart());
    Parameters replace = new Parameters();
    Parameters.ParametersParameterComponent operation =
        replace.addParameter().setName("operation");
    operation.addPart().setName("type").setValue(new CodeType("replace"));
    operation.addPart().setName("path").setValue(new StringType("Patient.name[0].family"));
    operation.addPart().setName("value").setValue(new StringType("Thistlewick"));
    MethodOutcome byPath = client.patch().withFhirPatch(replace).withId(id).execute();
    assertEquals("3", byPath.getId().getVersionIdPart());
    Patient read = client.read().resource(Patient.class).withId(id).execute();
    assertEquals("Thistlewick", read.getNameFirstRep().getFamily());
    assertEquals("1948-05-14", read.getBirthDateElement().getValueAsString());
  }

  private static void addTo(List<String> families, Bundle page) {
    for (Bundle.BundleEntryComponent entry : page.getEntry()) {
      families.add(((Patient) entry.getResource()).getNameFirstRep().getFamily());
    }
  }

  /** GET of _search, its third style, is no R4. */
  @ParameterizedTest
  @EnumSource(
      value = SearchStyleEnum.class,
      names = {"GET", "POST"})
  void searchesAndPages(SearchStyleEnum style) {
    List<String> expected = List.of("Family0", "Family1", "Family2", "Family3", "Family4");
    expected.forEach(this::created);
    Bundle page =
        client
            .search()
            .forResource(Patient.class)
            .where(ofThisTest())
            .sort()
            .ascending(Patient.FAMILY)
            .count(2)
            .usingStyle(style)
            .returnBundle(Bundle.class)
            .execute();
    List<String> families = new ArrayList<>();
    int pages = 1;
    addTo(families, page);
    while (page.getLink(Bundle.LINK_NEXT) != null) {
      page = client.loadPage().next(page).execute();
      addTo(families, page);
      pages++;
    }
    assertEquals(expected, families);
    assertEquals(3, pages);
  }

  @Test
  void keepsTheShapeOfPagesThatWereCutDown() {
    List.of("Family0", "Family1", "Family2").forEach(this::created);
    Bundle page =
        client
            .search()
            .forResource(Patient.class)
            .where(ofThisTest())
            .elementsSubset("name")
            .count(2)
            .returnBundle(Bundle.class)
            .execute();
    Bundle second = client.loadPage().next(page).execute();
    for (Bundle each : List.of(page, second)) {
      Patient found = (Patient) each.getEntryFirstRep().getResource();
      assertTrue(found.hasName());
      assertFalse(found.hasIdentifier(), "what was not asked for is not sent, on any page");
    }
  }

  @Test
  void includesWhatIsReferredTo() {
    IdType id = (IdType) created("Oakenshade").toUnqualifiedVersionless();
    client.create().resource(stayOf(id.getValue())).execute();
    Bundle stays =
        client
            .search()
            .forResource(Encounter.class)
            .where(Encounter.SUBJECT.hasId(id))
            .include(Encounter.INCLUDE_SUBJECT)
            .returnBundle(Bundle.class)
            .execute();
    assertEquals(List.of("match", "include"), modes(stays));
    Bundle people =
        client
            .search()
            .forResource(Patient.class)
            .where(Resource.RES_ID.exactly().identifier(id.getIdPart()))
            .revInclude(Encounter.INCLUDE_SUBJECT)
            .returnBundle(Bundle.class)
            .execute();
    assertEquals(List.of("match", "include"), modes(people));
  }

  private static List<String> modes(Bundle found) {
    return found.getEntry().stream().map(entry -> entry.getSearch().getMode().toCode()).toList();
  }

  @Test
  void readsHistories() {
    IdType id = (IdType) created("Oakenshade").toUnqualifiedVersionless();
    Patient changed = patient("Thistlewick");
    changed.setId(id);
    client.update().resource(changed).execute();
    client.delete().resourceById(id).execute();
    Bundle history =
        client.history().onInstance(id).returnBundle(Bundle.class).count(10).execute();
    assertEquals(
        List.of("DELETE", "PUT", "POST"),
        history.getEntry().stream().map(e -> e.getRequest().getMethod().toCode()).toList());
    Bundle page = client.history().onType(Patient.class).returnBundle(Bundle.class).count(2).execute();
    assertEquals(2, client.loadPage().next(page).execute().getEntry().size());
  }

  @Test
  void sendsTransactions() {
    String urn = "urn:uuid:" + UUID.randomUUID();
    Bundle bundle = new Bundle();
    bundle.setType(Bundle.BundleType.TRANSACTION);
    bundle
        .addEntry()
        .setFullUrl(urn)
        .setResource(patient("Oakenshade"))
        .getRequest()
        .setMethod(Bundle.HTTPVerb.POST)
        .setUrl("Patient")
        .setIfNoneExist("Patient?identifier=" + SYSTEM + "|" + batch);
    bundle
        .addEntry()
        .setResource(stayOf(urn))
        .getRequest()
        .setMethod(Bundle.HTTPVerb.POST)
        .setUrl("Encounter");
    Bundle answer = client.transaction().withBundle(bundle).execute();
    IdType person = new IdType(answer.getEntry().get(0).getResponse().getLocation());
    IdType stay = new IdType(answer.getEntry().get(1).getResponse().getLocation());
    Encounter read = client.read().resource(Encounter.class).withId(stay.getIdPart()).execute();
    assertEquals("Patient/" + person.getIdPart(), read.getSubject().getReference());

    Bundle everything =
        client
            .operation()
            .onInstance(new IdType("Patient", person.getIdPart()))
            .named("$everything")
            .withNoParameters(Parameters.class)
            .useHttpGet()
            .returnResourceType(Bundle.class)
            .execute();
    assertEquals(
        List.of("Encounter", "Patient"),
        everything.getEntry().stream().map(e -> e.getResource().fhirType()).sorted().toList());
  }

  @Test
  void callsOperations() {
    MethodOutcome judged = client.validate().resource(patient("Oakenshade")).execute();
    assertNotNull(judged.getOperationOutcome());
    IdType id = (IdType) created("Oakenshade").toUnqualifiedVersionless();
    org.hl7.fhir.r4.model.Meta tag = new org.hl7.fhir.r4.model.Meta();
    tag.addTag().setSystem("urn:a").setCode("b");
    var added = client.meta().add().onResource(id).meta(tag).execute();
    assertEquals("b", added.getTagFirstRep().getCode());
    Bundle everything =
        client
            .operation()
            .onInstance(id)
            .named("$everything")
            .withNoParameters(Parameters.class)
            .returnResourceType(Bundle.class)
            .execute();
    assertEquals(1, everything.getEntry().size());
  }

  @Test
  void deletes() {
    IdType id = (IdType) created("Oakenshade").toUnqualifiedVersionless();
    client.delete().resourceById(id).execute();
    ResourceGoneException gone =
        assertThrows(
            ResourceGoneException.class,
            () -> client.read().resource(Patient.class).withId(id).execute());
    assertFalse(diagnosticsOf(gone).isEmpty());
    client.delete().resourceById(id).execute();
  }

  @Test
  void passesOnWhyItWasRefused() {
    Encounter stay = stayOf("Patient/1");
    stay.setStatus(null);
    InvalidRequestException invalid =
        assertThrows(
            InvalidRequestException.class,
            () -> client.create().resource(stay).execute());
    OperationOutcome outcome = (OperationOutcome) invalid.getOperationOutcome();
    assertEquals(
        "Encounter.status", outcome.getIssueFirstRep().getExpression().get(0).getValue());
    ResourceNotFoundException absent =
        assertThrows(
            ResourceNotFoundException.class,
            () -> client.read().resource(Patient.class).withId("none-such").execute());
    assertFalse(diagnosticsOf(absent).isEmpty());
  }

  /** It has no way to ask for a token: it shows one that the caller brings. */
  @Test
  void showsAToken() {
    client = FHIR.newRestfulGenericClient(System.getenv("CARERELAY_SMART_BASE"));
    AuthenticationException refused =
        assertThrows(AuthenticationException.class, () -> created("Oakenshade"));
    assertFalse(diagnosticsOf(refused).isEmpty());
    client.registerInterceptor(new BearerTokenAuthInterceptor(System.getenv("CARERELAY_TOKEN")));
    Patient read =
        client.read().resource(Patient.class).withId(created("Oakenshade").getIdPart()).execute();
    assertEquals("Oakenshade", read.getNameFirstRep().getFamily());
  }
}
